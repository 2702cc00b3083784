"""Run methods on many programs, on one machine or a Ray cluster; results and leaderboards."""
