"""Prompts of a text-to-image model, from the captions of a dataset."""

import json
from dataclasses import dataclass

from components.persons.shards import CaptionRow, PersonDataset


@dataclass(frozen=True)
class DatasetPrompt:
    """The prompt of one picture, with the picture's attributes and its captions for retrieval."""

    image_id: int
    caption_id: int
    text: str
    attributes: dict[str, str]
    captions: tuple[CaptionRow, ...]


def prompt_form(dataset: PersonDataset) -> str:
    """The caption form used as prompts: "short" where the dataset has it, else "long"."""
    return "short" if "short" in dataset.forms() else "long"


def dataset_prompts(dataset: PersonDataset, split: str, number: int) -> list[DatasetPrompt]:
    """Return one prompt per picture for the first `number` pictures of a split: its first caption of the prompt form.

    Raises DataError for a split without captions.
    """
    captions: dict[int, list[CaptionRow]] = {}
    for row in dataset.rows(split=split, form="long"):
        captions.setdefault(row["image_id"], []).append(CaptionRow(row["caption"], "long", tuple(row["wrong_words"])))
    found: dict[int, DatasetPrompt] = {}
    for row in dataset.needed_rows(split=split, form=prompt_form(dataset)):
        if len(found) == number:
            break
        image_id = row["image_id"]
        if image_id not in found:
            attributes = json.loads(row["attributes"])
            found[image_id] = DatasetPrompt(
                image_id, row["caption_id"], row["caption"], attributes, tuple(captions.get(image_id, ()))
            )
    return list(found.values())
