"""Studies: many small measurements, each kept, and a committed summary. No stages and no arms of the pipeline itself.

`python -m pipelines study <name>` reads `studies/<name>.yaml`, measures the cells without a result, and writes
`studies/results/<name>.json`. `engine` is the same for every study; a study defines `<name>.py` (its cells and its summary) and
`<name>_cells.py` (how a cell is measured).
"""
