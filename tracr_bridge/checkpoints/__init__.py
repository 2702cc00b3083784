"""Writes programs as Hugging Face checkpoints with known circuits, and reads them back."""
