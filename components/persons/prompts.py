"""Prompts of a text-to-image model, from the captions of a dataset."""

import json
from dataclasses import dataclass

from components.persons.shards import CaptionRow, PersonDataset


@dataclass(frozen=True)
class DatasetPrompt:
    """The prompt of one picture, with the picture's attributes, and the captions for retrieval that a picture drawn from it has.

    Short prompts state all that the long captions tell of. Otherwise a prompt is one of the long captions, and the others, which
    somebody else wrote of the same picture, are none of what is drawn from it.
    """

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
    form = prompt_form(dataset)
    captions: dict[int, list[CaptionRow]] = {}
    for row in dataset.rows(split=split, form="long"):
        captions.setdefault(row["image_id"], []).append(CaptionRow(row["caption"], "long", tuple(row["wrong_words"])))
    found: dict[int, DatasetPrompt] = {}
    for row in dataset.needed_rows(split=split, form=form):
        if len(found) == number:
            break
        image_id = row["image_id"]
        if image_id not in found:
            told = captions.get(image_id, [])[: None if form == "short" else 1]
            attributes = json.loads(row["attributes"])
            found[image_id] = DatasetPrompt(image_id, row["caption_id"], row["caption"], attributes, tuple(told))
    return list(found.values())
