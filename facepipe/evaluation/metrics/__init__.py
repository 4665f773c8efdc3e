"""Accuracy as numbers: of detections, landmarks, pairs, names and groups."""
