"""The commands of `edgeprune` that need Tracr: programs, truth, recovery."""
