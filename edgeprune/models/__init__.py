"""Hugging Face language models as masked models, run by our own short forward pass over their weights."""
