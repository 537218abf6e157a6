"""Stages, and what runs, tracks and joins them."""
