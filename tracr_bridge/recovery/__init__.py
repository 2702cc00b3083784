"""Discovery on models whose true circuits are known, compared with the truth; what pytest runs."""
