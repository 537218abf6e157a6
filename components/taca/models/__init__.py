"""One file per transformer family: all that differs between families.

What is the same for every family is outside, in `components/taca`.
"""
