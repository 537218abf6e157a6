"""Published datasets and manifests, read exactly as they are distributed, and every record checked.

Nothing is drawn or filtered.
"""
