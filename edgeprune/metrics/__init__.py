"""Distances between a circuit's and the full model's outputs, and metrics of how much a model prefers right answers."""
