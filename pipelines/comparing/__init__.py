"""Compares runs: their parameters, their results with paired tests, and examples. Runs are only read, never started."""
