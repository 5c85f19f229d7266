"""Methods: one file of pure functions a family, each a choice of the primitive's vector; they know no data set."""
