"""The distributed generator, `python -m pipelines generate`: a file of prompts in, a folder of sharded pictures out.

prompts.py   reads a text file or manifest; says which prompts are bad, and why
plan.py      every picture and shard, decided from the input alone
folder.py    the output folder: whose it is, which shards are finished, the manifest
painter.py   draws one shard
pool.py      hands shards to painters: in this process, or actors of Ray
samples.py   the pictures as files, named as T2I-CompBench names them
options.py   the options
generation.py  the whole of a generation
"""
