"""A very small encoder for studies, in params.yaml's form and as a published folder."""

from pathlib import Path
from typing import Any

from components.gadms.model import DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.shards import PersonDataset

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [64, 32], "layers": 1, "width": 24, "head_width": 12, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}


def publish_encoder(folder: Path, people: PersonDataset, seed: int = 0) -> None:
    """Save an untrained one that knows the words of these people's training captions."""
    tokenizer = CaptionTokenizer.from_corpus(people.rows(split="train", form="long").column("caption"))
    DualEncoder.create(ARCHITECTURE, image_size=(64, 32), tokenizer=tokenizer, seed=seed).save(folder)
