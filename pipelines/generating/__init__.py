"""The distributed generator, `python -m pipelines generate`: from a file of prompts to a folder of sharded pictures.

options.py     the options
prompts.py     reads a text file or manifest, and gives reasons for bad prompts
plan.py        all pictures and shards, determined by the input alone
folder.py      the output folder: its settings, the finished shards, the manifest
painter.py     draws one shard
pool.py        distributes shards to painters, in this process or in Ray actors
samples.py     exports pictures under T2I-CompBench's file names
generation.py  runs a generation
"""
