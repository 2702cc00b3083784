"""Work on a language model, in folders that can be stopped and resumed: prune, sweep, compare; and what it costs."""
