"""Discovery on models whose true circuits are known, compared with the truth; the checks of the pytest plugin."""
