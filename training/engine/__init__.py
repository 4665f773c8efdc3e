"""The training loop of both trainers, with its optimiser, checkpoints, batches and settings."""
