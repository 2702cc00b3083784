"""Derives true circuits, and the certificates that say how far they are proved."""
