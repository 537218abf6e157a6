"""Datasets of people in pictures: records, shards, readers of published datasets, the drawn dataset, curation, transforms."""

from typing import Any

from components.exports import all_names, find

_PUBLIC = {
    "augmentation": ("AugmentationConfig",),
    "drawn.attributes": ("ATTRIBUTES", "IDENTITY_ATTRIBUTES", "MIRRORED", "sample_identities"),
    "drawn.caption_noise": ("CaptionNoise",),
    "drawn.captions": ("Caption", "SHORT_VOCABULARY", "compose", "short_caption"),
    "drawn.config": ("Degradation", "DrawnConfig", "PRESETS"),
    "drawn.dataset": ("write_drawn_dataset",),
    "drawn.drawing": ("DrawnPicture", "draw_person"),
    "pixels": ("encode_png",),
    "published.readers": ("Listing", "read_dataset", "read_listing"),
    "published.validation": ("ValidationReport", "validate_records"),
    "records": ("Record",),
    "shards": ("CaptionRow", "DatasetWriter", "PersonDataset", "Rows", "write_records"),
    "transforms": ("augment", "normalise"),
}
__all__ = all_names(_PUBLIC)


def __getattr__(name: str) -> Any:
    return find(__name__, _PUBLIC, name)
