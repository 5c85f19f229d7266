"""The outer loop: from a configuration to a finished run folder."""
