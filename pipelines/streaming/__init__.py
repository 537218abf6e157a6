"""Training on corpora that fit on no machine's memory: batches of a step number, read ahead by Ray Data.

read_ahead.py   steps in order out of a Ray Data pipeline of reader processes; or read here
batches.py      what a retrieval stage takes in place of its lists
"""
