"""The training loop, its context, checkpoints, distribution and random streams.

Models, losses and batches are in the rooms of the methods.
"""
