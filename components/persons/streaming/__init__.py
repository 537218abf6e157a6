"""Corpora larger than memory: read in blocks, in an order that is a function of seed and step. No Ray in here."""
