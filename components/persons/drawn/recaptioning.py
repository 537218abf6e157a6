"""A dataset with other captions of the same pictures, for studies of noisy captions.

Between two rates every caption keeps its plan (which groups it mentions, in which order, with which synonyms) and differs only in
the words of falsified attributes, and in what follows from them (an invented hat is mentioned). The noise is that of `dataset.py`,
with two streams in place of one; a confusion comes after it, and joining after both.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.errors import DataError, ParameterError
from components.persons.drawn.caption_noise import CaptionNoise, mark_false
from components.persons.drawn.captions import compose
from components.persons.drawn.confusion import Confusion
from components.persons.shards import PersonDataset
from components.training.randomness import numpy_generator


def recaptioned(
    dataset: PersonDataset,
    rate: float,
    seed: int,
    *,
    split: str = "train",
    people: int | None = None,
    skip: int = 0,
    confusion: Confusion | None = None,
    joined: bool = False,
) -> PersonDataset:
    """Return `dataset` with new long captions in one split, whose stated attributes are false with probability `rate`.

    Each long caption is replaced by another of the same picture, with its wrong words; rows, pictures and other splits stay. False
    values have the frequencies of the training split. `people` keeps that many identities of the split, after the first `skip`.
    `confusion` falsifies more, alike in all captions of a person. `joined` appends to each long caption the next one of its picture
    (to the last the first), so that most facts are stated twice, each with noise of its own.

    Raises:
        ParameterError: `rate` outside [0, 1], or fewer than `skip` + `people` identities. DataError: a caption's picture states no
            attributes, as in published sets.
    """
    table = dataset.manifest
    inside = np.asarray(pc.equal(table["split"], split))
    identities = list(dict.fromkeys(pc.filter(table["identity"], pa.array(inside)).to_pylist()))
    chosen = identities[skip:] if people is None else identities[skip : skip + people]
    if not chosen or (people is not None and len(chosen) < people):
        wanted = f"people = {people} after {skip}" if skip else f"people = {people}"
        raise ParameterError(f"{wanted}: the split {split} has {len(identities)} identities")
    kept = np.isin(table["identity"].to_numpy(), chosen) | ~inside
    captions, wrong = table["caption"].to_pylist(), table["wrong_words"].to_pylist()
    noise = CaptionNoise(_shown_in_training(dataset), rate)
    described = np.flatnonzero(inside & kept & np.asarray(pc.equal(table["form"], "long"))).tolist()
    for row in described:
        shown = json.loads(table["attributes"][row].as_py())
        if not shown:
            raise DataError(
                f"{dataset.folder}: caption {row} has no attributes: only drawn people can be described again"
            )
        stated, false = noise.falsify(shown, numpy_generator(seed, "caption noise", row))
        if confusion is not None and confusion.concerns(table["identity"][row].as_py(), seed):
            stated, confused = confusion.falsify(stated)
            false = _still_false(stated, shown, false | confused)
        plan = int(numpy_generator(seed, "caption", row).integers(2**62))
        marked = mark_false(compose(stated, plan), false)
        captions[row], wrong[row] = marked.text, list(marked.wrong_words)
    if joined:
        _join(captions, wrong, described, table["image_id"].to_pylist())
    for name, values in (("caption", captions), ("wrong_words", wrong)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    return PersonDataset(dataset.folder, manifest=table.filter(pa.array(kept)))


def _still_false(stated: Mapping[str, str], shown: Mapping[str, str], false: frozenset[str]) -> frozenset[str]:
    """Leave out of `false` what a confusion has set right by chance: blue that noise told as gray, and then gray as blue."""
    return frozenset(name for name in false if stated.get(name) != shown.get(name))


def _join(captions: list[str], wrong: list[list[int]], rows: Sequence[int], pictures: Sequence[int]) -> None:
    """Append to each caption of `rows` the next one of its picture, in place, with the positions of its wrong words."""
    of_picture: dict[int, list[int]] = {}
    for row in rows:
        of_picture.setdefault(pictures[row], []).append(row)
    alone = {row: (captions[row], wrong[row]) for row in rows}
    for together in of_picture.values():
        for place, row in enumerate(together if len(together) > 1 else ()):
            (first, errors), (second, more) = alone[row], alone[together[(place + 1) % len(together)]]
            captions[row] = f"{first} {second}"
            wrong[row] = [*errors, *(len(first.split()) + word for word in more)]


def _shown_in_training(dataset: PersonDataset) -> list[dict[str, str]]:
    """The attributes of each picture of the training split."""
    rows = dataset.rows(split="train")
    shown = dict(zip(rows.column("image_id"), rows.column("attributes"), strict=True))
    return [json.loads(attributes) for attributes in shown.values()]
