"""Checks before a run: `doctor` for data, weights and cluster, `dry-run` for models and memory.

Nothing is trained or written here.
"""
