"""Executables for serving."""
