"""The small text-to-image pipeline of the default, and how it is trained from nothing.

Real models are not handled here.
"""
