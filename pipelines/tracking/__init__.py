"""Writes stage runs to MLflow, each metric once. No knowledge of how a stage runs."""
