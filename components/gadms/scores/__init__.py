"""Scores of caption tokens: one file per family of scores, and `scoring`, the table of them.

Masking is elsewhere.
"""
