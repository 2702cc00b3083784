"""How far outputs are from the full model's, and by how much a model prefers the right answer."""
