"""Programs as Hugging Face checkpoints with known circuits, written and read back."""
