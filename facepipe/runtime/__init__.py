"""Running of networks: runtimes, architectures by name, ONNX export."""
