"""Datasets of people in pictures: records, shards, readers of published datasets, the drawn dataset, curation, transforms."""

import importlib
from typing import Any

_PUBLIC = {
    "ATTRIBUTES": "drawn.attributes",
    "IDENTITY_ATTRIBUTES": "drawn.attributes",
    "MIRRORED": "drawn.attributes",
    "sample_identities": "drawn.attributes",
    "Degradation": "drawn.degradation",
    "PRESETS": "drawn.degradation",
    "DrawnPicture": "drawn.drawing",
    "draw_person": "drawn.drawing",
    "Caption": "drawn.captions",
    "SHORT_VOCABULARY": "drawn.captions",
    "compose": "drawn.captions",
    "short_caption": "drawn.captions",
    "CaptionNoise": "drawn.caption_noise",
    "DrawnConfig": "drawn.dataset",
    "write_drawn_dataset": "drawn.dataset",
    "Record": "records",
    "Listing": "published.readers",
    "read_dataset": "published.readers",
    "read_listing": "published.readers",
    "ValidationReport": "published.validation",
    "validate_records": "published.validation",
    "CaptionRow": "shards",
    "DatasetWriter": "shards",
    "PersonDataset": "shards",
    "Rows": "shards",
    "encode_png": "pixels",
    "write_records": "shards",
    "AugmentationConfig": "augmentation",
    "augment": "transforms",
    "normalise": "transforms",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
