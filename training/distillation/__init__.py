"""Teachers: trained networks to learn from."""
