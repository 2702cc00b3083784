"""RASP programs, compiled by Tracr and carried into PyTorch, with proof that nothing changed on the way."""
