"""Nearest neighbours among vectors, in memory and in a file; knows no people."""
