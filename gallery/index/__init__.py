"""Nearest neighbours among vectors, in memory and in a file; without people."""
