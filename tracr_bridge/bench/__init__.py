"""Methods on many programs: runs, results, leaderboards, on one machine or a Ray cluster."""
