"""Accuracy of detectors, encoders and names, by published protocols in NumPy."""
