"""A web page on which people name their photos, and an API that other programs call."""
