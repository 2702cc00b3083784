"""Files, written atomically and validated when read: circuits, checkpoints, folders, other tools' formats."""
