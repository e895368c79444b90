"""Training processes."""
