"""Scores results by published protocols: T2I-CompBench, leaderboards, other data sets. Metrics: `components.evaluation`."""
