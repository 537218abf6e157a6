"""Published datasets and manifests, read exactly as distributed, with every record validated.

Nothing is drawn or filtered.
"""
