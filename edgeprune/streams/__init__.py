"""The two disentangled residual streams: by column (compiled models) and by source (language models)."""
