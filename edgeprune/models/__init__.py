"""Language models of Hugging Face as masked models: our own short forward over their weights."""
