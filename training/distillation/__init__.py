"""Learning from trained networks: teachers in ONNX files, inner maps, teacher forcing."""
