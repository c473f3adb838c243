"""Training objectives as named terms."""
