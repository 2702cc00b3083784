"""The `edgeprune` command, and its commands on language models and files. Other packages add theirs by entry point."""
