"""The verbs of `python -m pipelines`, one file each: its options, its line in `--help`, and the function that it calls.

Work belongs in the rooms below; a command imports them when it runs, so that every verb starts fast.
"""
