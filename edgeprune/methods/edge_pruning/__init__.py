"""Edge Pruning (arXiv:2406.16778): one engine, and the parts that its configurations combine."""
