"""What a circuit is worth: against the truth, and by what it does when run."""
