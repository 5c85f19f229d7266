"""Pages, and the scripts that make those of them that nobody types."""
