"""Where and as what networks run: engines, architectures by name, ONNX export."""
