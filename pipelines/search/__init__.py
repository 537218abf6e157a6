"""Galleries of pictures by command line: made, updated, searched, forgotten from, and registered as an MLflow model.

What a gallery is, and the search itself, are in `components.search`.
"""
