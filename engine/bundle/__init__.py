"""Models on the wire."""
