"""How good the networks are: the published protocols in NumPy, on detections and embeddings from anywhere."""
