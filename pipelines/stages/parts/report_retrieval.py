"""The report's sections on retrieval: metrics by arm, results by attribute, and scored words of captions."""

import json
from collections.abc import Mapping
from typing import Any

from components.evaluation.breakdown import by_attribute, mistaken_attributes
from components.evaluation.comparison import retrieval_differences
from components.evaluation.retrieval_result import RetrievalResult
from components.persons.shards import PersonDataset
from pipelines.stages.parts.report_pictures import Album, select_spread

MASKING_BASELINE = "random"
WORD_COLUMNS = ("caption_id", "position", "word", "wrong")
"""Columns of a table of scored words that are not scores."""


def retrieval_section(
    metrics: Mapping[str, Any], tables: Mapping[str, Any], real: PersonDataset, seed: int
) -> dict[str, Any]:
    """Return each arm's metrics and its paired difference in R@1 to random masking, and the untrained baselines."""
    rows = real.rows()
    identities = dict(zip(rows.column("caption_id"), rows.column("identity"), strict=True))
    differences = retrieval_differences(tables, MASKING_BASELINE, identities, seed)
    shared = ("untrained", "chance", "attribute_ceiling", "gallery", "identities", "dataset", "left_out")
    arms = {}
    for arm in tables:
        own = {key: value for key, value in metrics[f"gadms_evaluate@{arm}"].items() if key not in shared}
        if arm in differences:
            own["R@1_difference"] = differences[arm].as_dict()
        arms[arm] = own
    first = metrics["gadms_evaluate@gadms"]
    return {"arms": arms, **{key: first[key] for key in shared if key in first}}


def breakdown_section(tables: Mapping[str, Any], real: PersonDataset, seed: int) -> dict[str, Any]:
    """Return retrieval by the attributes of the searched picture: {} for a data set without attributes.

    "attributes": name -> value -> the number of queries, and for each arm its R@1, with an interval over people from two on.
    "mistaken": arm -> attribute -> how often a wrong first match differs in it, and how often a random picture would.
    """
    rows = real.rows(form="long")
    shown = {
        image: json.loads(text) for image, text in zip(rows.column("image_id"), rows.column("attributes"), strict=True)
    }
    identities = dict(zip(rows.column("image_id"), rows.column("identity"), strict=True))
    searched = next(iter(tables.values()))["image_id"]
    if not all(shown[image] for image in searched):
        return {}
    people = [identities[image] for image in searched]
    shows = [shown[image] for image in searched]
    attributes: dict[str, dict[str, Any]] = {}
    mistaken = {}
    gallery = [shown[image] for image in dict.fromkeys(searched)]
    for arm, table in tables.items():
        parts = by_attribute(RetrievalResult.from_columns(table), shows, people, seed=seed)
        for name, values in parts.items():
            for value, part in values.items():
                row = attributes.setdefault(name, {}).setdefault(value, {"queries": part.queries, "arms": {}})
                row["arms"][arm] = part.interval_as_dict()
        pairs = zip(searched, table["found_image_id"], strict=True)
        missed = [(own, found) for own, found in pairs if identities[own] != identities[found]]
        wrong = mistaken_attributes([shown[own] for own, _ in missed], [shown[found] for _, found in missed], gallery)
        mistaken[arm] = {name: share.as_dict() for name, share in wrong.items()}
    return {"attributes": attributes, "mistaken": mistaken}


def heatmaps(album: Album, real: PersonDataset, words: Mapping[str, list[Any]], number: int) -> list[dict[str, Any]]:
    """Return `number` captions with their pictures, spread over those with a wrong word: their words, and every score of each."""
    names = [name for name in words if name not in WORD_COLUMNS]
    captions: dict[int, list[int]] = {}
    for place, caption in enumerate(words["caption_id"]):
        captions.setdefault(caption, []).append(place)
    noisy = [caption for caption, places in captions.items() if any(words["wrong"][place] for place in places)]
    chosen = select_spread(noisy, number)
    rows = real.rows()
    images = dict(zip(rows.column("caption_id"), rows.column("image_id"), strict=True))
    pictures = album.pixels(real, [images[caption] for caption in chosen])
    return [
        {
            "caption_id": caption,
            "picture": album.add(f"words/{place:02d}", picture),
            "words": [{"word": words["word"][i], "wrong": bool(words["wrong"][i])} for i in captions[caption]],
            "scores": {name: [words[name][i] for i in captions[caption]] for name in names},
        }
        for place, (caption, picture) in enumerate(zip(chosen, pictures, strict=True))
    ]
