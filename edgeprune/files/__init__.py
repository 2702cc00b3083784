"""Files that are never half written and never half believed: circuits, checkpoints, folders, other tools' formats."""
