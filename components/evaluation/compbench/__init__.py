"""T2I-CompBench (arXiv 2307.06350) as its authors compute it: prompts, picture names, metrics, result files.

What the published scripts do was read off github.com/Karine-Huang/T2I-CompBench and is restated, quirks included, so that
numbers compare with the tables of papers. The models' weights are the user's to bring; nothing is downloaded.
"""
