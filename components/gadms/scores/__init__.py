"""Scores of caption tokens: one file for each family of scores, and `scoring`, which knows them by name.

Masking is elsewhere.
"""
