"""Curation of pictures for a training set: rules, captions, near duplicates, selection."""
