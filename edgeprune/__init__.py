"""Circuit discovery on transformers, with masks on the edges of the computation graph."""
