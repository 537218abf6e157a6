"""Research runs: many small measurements, kept one by one, and a summary whose numbers are committed.

`python -m pipelines study <name>` reads `studies/<name>.yaml`, measures what is not measured yet, and writes
`studies/results/<name>.json`. `engine` is the same for every study; a study brings `<name>.py` (which cells there are, and what
they add up to) and `<name>_cells.py` (how one cell is measured).
"""
