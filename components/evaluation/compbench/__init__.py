"""T2I-CompBench (arXiv 2307.06350) as its authors compute it: prompts, picture names, metrics, result files.

The scripts of github.com/Karine-Huang/T2I-CompBench are reimplemented with their quirks, so that numbers compare with those of
papers. The user provides the models' weights; nothing is downloaded.
"""
