"""The primitive as an explicit program of dual layers, for students made of known layers."""
