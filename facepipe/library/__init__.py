"""A batch with a memory of what people decided about its faces."""
