"""The page on which people name their photos."""
