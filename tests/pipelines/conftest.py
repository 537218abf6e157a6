"""The fixtures of `tests/support/workspaces.py`, for every test of the pipelines."""

from workspaces import drawn_people, empty_store, place, place_at, waiting, with_people, workers

__all__ = ["drawn_people", "empty_store", "place", "place_at", "waiting", "with_people", "workers"]
