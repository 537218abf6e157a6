"""People in pictures: records, readers for the published sets, the drawn set, caption noise, transforms, loading."""

import importlib
from typing import Any

_PUBLIC = {
    "ATTRIBUTES": "attributes",
    "IDENTITY_ATTRIBUTES": "attributes",
    "MIRRORED": "attributes",
    "sample_identities": "attributes",
    "Degradation": "degradation",
    "PRESETS": "degradation",
    "Picture": "drawing",
    "draw_person": "drawing",
    "Caption": "captions",
    "SHORT_VOCABULARY": "captions",
    "long_caption": "captions",
    "short_caption": "captions",
    "CaptionNoise": "noise",
    "DrawnConfig": "drawn",
    "write_drawn_dataset": "drawn",
    "Record": "records",
    "Listing": "readers",
    "read_dataset": "readers",
    "read_listing": "readers",
    "ValidationReport": "validation",
    "validate_records": "validation",
    "CaptionRow": "shards",
    "DatasetWriter": "shards",
    "PersonDataset": "shards",
    "Rows": "shards",
    "encode_png": "png",
    "write_records": "shards",
    "AugmentationConfig": "transforms",
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
