"""The report's pictures: generated people with their prompts, matches of queries, examples of curation decisions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
from torch import Tensor

from components.evaluation.figures import GREEN, RED, contact_sheet, framed, save_png
from components.persons.curation.selection import KEPT
from components.persons.prompts import prompt_form
from components.persons.shards import PersonDataset
from components.search.query import TextSearch
from pipelines.graph import TACA_ARMS

GALLERY = 8
"""Pictures per query."""
EXAMPLES = 8
"""Pictures per reason of curation."""
SEEN = 192
"""Height in pixels that a picture on a contact sheet is enlarged to, at least half."""
GOLDEN = 0.6180339887498949
Item = TypeVar("Item")


class Album:
    """Writes pictures of one size below `folder`, and contact sheets of them below `shown` too (for MLflow)."""

    def __init__(self, folder: Path, shown: Path, height: int, width: int) -> None:
        self.folder, self.shown = folder, shown
        self.size = (height, width)
        folder.mkdir(parents=True, exist_ok=True)

    def pixels(self, dataset: PersonDataset, image_ids: Sequence[int]) -> list[Tensor]:
        return list(dataset.pixels(image_ids, *self.size))

    def add(self, name: str, picture: Tensor) -> str:
        """Write `name`.png and return its path relative to the album."""
        save_png(picture, self.folder / f"{name}.png")
        return f"{name}.png"

    def add_plate(self, name: str, rows: Sequence[Sequence[Tensor]]) -> None:
        """Write rows of pictures as one contact sheet, small ones enlarged."""
        if any(rows):
            factor = max(1, SEEN // self.size[0])
            rows = [[p.repeat_interleave(factor, 1).repeat_interleave(factor, 2) for p in row] for row in rows]
            for folder in (self.folder, self.shown):
                save_png(contact_sheet(rows), folder / f"{name}.png")


def people(
    album: Album,
    real: PersonDataset,
    inputs: Mapping[str, Path],
    tables: Mapping[str, Mapping[str, list[Any]]],
    number: int,
) -> list[dict[str, Any]]:
    """Return `number` prompts with the real picture they describe and each arm's picture, attributes marked right or wrong.

    Shown at the first guidance, where the arms differ by themselves. tables: the arms' alignment, with the columns source and
    prompt_id and one per attribute.
    """
    drawn = {arm: PersonDataset(inputs[f"generated/{arm}"]) for arm in TACA_ARMS}
    rows = {arm: drawn[arm].rows(split="val") for arm in TACA_ARMS}
    source = rows[TACA_ARMS[0]][0]["source"]
    prompts = select_spread([row for row in rows[TACA_ARMS[0]] if row["source"] == source], number)
    pictures = {
        arm: {row["identity"]: row["image_id"] for row in rows[arm] if row["source"] == source} for arm in TACA_ARMS
    }
    section, sheet = [], []
    for place, row in enumerate(prompts):
        prompt = row["identity"]
        (shown,) = album.pixels(real, [prompt])
        arms, line = {}, [shown]
        for arm in TACA_ARMS:
            (picture,) = album.pixels(drawn[arm], [pictures[arm][prompt]])
            arms[arm] = {
                "picture": album.add(f"people/{place:02d}-{arm}", picture),
                **_marks(tables[arm], source, prompt),
            }
            line.append(picture)
        sheet.append(line)
        section.append(
            {
                "prompt": row["caption"],
                "source": source,
                "attributes": json.loads(row["attributes"]),
                "real": album.add(f"people/{place:02d}-real", shown),
                "arms": arms,
            }
        )
    album.add_plate("people", sheet)
    return section


def queries(album: Album, real: PersonDataset, model: Path, index: Path, number: int) -> list[dict[str, Any]]:
    """Return `number` captions, spread over the indexed pictures, with the matches of each, correct ones marked."""
    search = TextSearch.open(model, index)
    indexed = set(search.index.image_ids.tolist())
    asked = select_spread([row for row in real.rows(form="long") if row["image_id"] in indexed], number)
    found = search.many([row["caption"] for row in asked], GALLERY)
    section, sheet = [], []
    for place, (row, matches) in enumerate(zip(asked, found, strict=True)):
        own, *pictures = album.pixels(real, [row["image_id"], *(match.image_id for match in matches)])
        right = [match.metadata["identity"] == row["identity"] for match in matches]
        section.append(
            {
                "caption": row["caption"],
                "picture": album.add(f"queries/{place:02d}-own", own),
                "identity": row["identity"],
                "first_right": right.index(True) + 1 if any(right) else None,
                "matches": [
                    {
                        "picture": album.add(f"queries/{place:02d}-{rank}", picture),
                        "right": is_right,
                        "own": match.image_id == row["image_id"],
                        "cosine": match.score,
                        "identity": match.metadata["identity"],
                    }
                    for rank, (picture, match, is_right) in enumerate(zip(pictures, matches, right, strict=True), 1)
                ],
            }
        )
        sheet.append([framed(p, GREEN if good else RED) for p, good in zip(pictures, right, strict=True)])
    album.add_plate("queries", sheet)
    return section


def curation_examples(album: Album, curated: Path, generated: Path) -> dict[str, list[dict[str, Any]]]:
    """Return examples by reason, spread from the best match of picture and captions to the worst."""
    decisions = pq.read_table(curated / "decisions.parquet").to_pylist()
    drawn = PersonDataset(generated)
    captions = {row["image_id"]: row["caption"] for row in drawn.rows(split="train", form=prompt_form(drawn))}
    section = {}
    for reason in sorted({row["reason"] for row in decisions}, key=lambda reason: (reason != KEPT, reason)):
        mine = sorted(
            (row for row in decisions if row["reason"] == reason), key=lambda row: (-row["match"], row["image_id"])
        )
        chosen = select_spread(mine, EXAMPLES)
        name = reason.replace(" ", "-")
        pictures = album.pixels(drawn, [row["image_id"] for row in chosen])
        section[reason] = [
            {
                "picture": album.add(f"curation/{name}-{place}", picture),
                "caption": captions[row["image_id"]],
                "match": row["match"],
            }
            for place, (row, picture) in enumerate(zip(chosen, pictures, strict=True))
        ]
    return section


def select_spread(items: Sequence[Item], number: int) -> list[Item]:
    """Select `number` of `items`, one from each equal part, at an offset that shifts from part to part; all if there are fewer.

    The shift (the golden ratio, a low-discrepancy sequence) keeps an even stride from picking the same view of every person.
    """
    if len(items) <= number:
        return list(items)
    return [items[int((i + i * GOLDEN % 1) * len(items) / number)] for i in range(number)]


def _marks(table: Mapping[str, list[Any]], source: str, prompt: int) -> dict[str, list[str]]:
    """Return which of a prompt's attributes the picture shows, and which not."""
    (row,) = (
        i for i, key in enumerate(zip(table["source"], table["prompt_id"], strict=True)) if key == (source, prompt)
    )
    values = {name: column[row] for name, column in table.items() if name not in ("source", "prompt_id")}
    return {
        "right": [name for name, value in values.items() if value == 1],
        "wrong": [name for name, value in values.items() if value == 0],
    }
