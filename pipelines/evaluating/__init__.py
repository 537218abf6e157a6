"""Commands that score results against published protocols: T2I-CompBench, leaderboards, other data sets.

The metrics are in `components.evaluation`.
"""
