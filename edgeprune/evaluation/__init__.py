"""Evaluation of circuits: against the true circuit, and by their behaviour when run."""
