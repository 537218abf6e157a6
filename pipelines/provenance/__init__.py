"""Checks of finished results: lineage, verification, reproduction, garbage collection. What is recorded is in `records`."""
