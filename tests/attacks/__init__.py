"""Attacks on what facepipe promises, for tests/attack.py: kills, corruptions, mutated inputs, bombs."""
