"""Random RASP programs, drawn by Hypothesis."""
