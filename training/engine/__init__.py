"""What every training run shares: the loop, its optimizer, checkpoints, batches and settings."""
