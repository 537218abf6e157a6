"""The small text-to-image pipeline of the default run, and its training from scratch.

Nothing here is used with published models.
"""
