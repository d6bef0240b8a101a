"""Speech recognition with attention and CTC."""
