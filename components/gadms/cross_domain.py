"""Cross-domain evaluation: every model on every dataset, and published results to compare with.

Published numbers and their sources are in `published_cross_domain.yaml` beside this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from components.errors import DataError
from components.evaluation.retrieval import retrieval_metrics
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder
from components.persons.shards import PersonDataset

PUBLISHED = Path(__file__).with_name("published_cross_domain.yaml")


@dataclass(frozen=True)
class Transfer:
    """A published result in percent: pre-trained on `pretraining` (None: CLIP), fine-tuned on `source`, tested on `target`."""

    pretraining: str | None
    source: str
    target: str
    rank_1: float
    mean_average_precision: float


def split_retrieval(encoder: DualEncoder, dataset: PersonDataset, split: str = "test") -> dict[str, float]:
    """Return `retrieval_metrics` of a split: every long caption searches every picture. Raises DataError for an empty split."""
    rows = dataset.needed_rows(split=split, form="long")
    captions, image_ids, identities = (rows.column(name) for name in ("caption", "image_id", "identity"))
    gallery = dict(zip(image_ids, identities, strict=True))
    return retrieval_metrics(
        embed_captions(encoder, captions),
        embed_images(encoder, list(gallery), lambda ids: dataset.pixels(ids, *encoder.image_size)),
        torch.tensor(identities),
        torch.tensor(list(gallery.values())),
    )


def cross_domain(
    models: Mapping[str, Path], datasets: Mapping[str, Path], *, split: str = "test", device: torch.device | str = "cpu"
) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluate every model on every dataset: model -> dataset -> metrics in percent. One model is in memory at a time.

    Raises DataError for a folder without a model, without a dataset, or without a caption in `split`.
    """
    opened = {name: PersonDataset(folder) for name, folder in datasets.items()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, folder in models.items():
        encoder = DualEncoder.load(folder).to(device)
        found[name] = {data: split_retrieval(encoder, people, split) for data, people in opened.items()}
    return found


def published_transfers(path: Path = PUBLISHED) -> list[Transfer]:
    """Read every published result. Raises DataError for a malformed entry."""
    try:
        entries: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [
            Transfer(entry["pretraining"], source, target, float(first), float(mean))
            for entry in entries
            for source, targets in entry["results"].items()
            for target, (first, mean) in targets.items()
        ]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a list of pretraining and results as its head says ({reason})") from error
