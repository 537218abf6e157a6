"""Questions to finished results: where from, still true, reproducible, still needed.

What is recorded is decided in `records`.
"""
