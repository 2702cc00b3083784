"""Runs on language models, in folders that can be resumed: prune, sweep, compare. Also dry runs and cost planning."""
