"""Examples of differences: pictures for the same prompts, and queries that one run answers and another does not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.evaluation.comparison import retrieval_hits
from components.evaluation.grids import side_by_side
from components.persons.shards import PersonDataset
from pipelines.comparing.differences import common_stages
from pipelines.comparing.people import People, folder_of, same_people
from pipelines.comparing.runs import ComparedRun
from pipelines.stages.parts.report_pictures import select_spread


def picture_grid(runs: Sequence[ComparedRun], prompts: int) -> Any:
    """A PIL image of the runs' pictures for a few common prompts, one column per run; None without common prompts.

    A prompt is common if it has the same id and the same text in all runs.
    """
    for key in common_stages(runs):
        folders = [run.stages[key].output("generated") for run in runs]
        if not all(folders):
            continue
        sets = [PersonDataset(folder) for folder in folders if folder]
        drawn = [_evaluation_pictures(dataset) for dataset in sets]
        common = select_spread([prompt for prompt in drawn[0] if _same_text(prompt, drawn)], prompts)
        if not common:
            continue
        pairs = list(zip(sets, drawn, strict=True))
        pictures = [[dataset.picture(each[prompt]["image_id"]) for dataset, each in pairs] for prompt in common]
        return side_by_side([drawn[0][prompt]["caption"] for prompt in common], [run.name for run in runs], pictures)
    return None


def _same_text(prompt: int, drawn: Sequence[dict[int, dict[str, Any]]]) -> bool:
    return all(prompt in each and each[prompt]["caption"] == drawn[0][prompt]["caption"] for each in drawn)


def _evaluation_pictures(dataset: PersonDataset) -> dict[int, dict[str, Any]]:
    """prompt -> row of its picture, at the first of the evaluated guidance scales."""
    rows = list(dataset.rows(split="val"))
    sources = sorted({row["source"] for row in rows})
    return {row["identity"]: row for row in rows if row["source"] == sources[0]}


def disputed_queries(runs: Sequence[ComparedRun], people: People | None, number: int) -> list[dict[str, Any]]:
    """Queries whose person one run finds first and another does not, the largest rank first.

    Each has "caption_id", "image_id", "ranks" (of the first right picture, in each run), "caption" and "picture" (a PIL image);
    the last two are None where `people` are not those that were searched. Runs that have searched different people have none.
    """
    for key in common_stages(runs):
        files = [run.stages[key].output("ranks") for run in runs]
        if not all(files) or not same_people(runs, key):
            continue
        tables = [pq.read_table(file).to_pydict() for file in files if file]
        if any(table["caption_id"] != tables[0]["caption_id"] for table in tables):
            continue
        sure = [retrieval_hits(table, 1) == 100 for table in tables]  # without an equal score of another person
        disputed = [
            {
                "caption_id": caption_id,
                "image_id": tables[0]["image_id"][row],
                "ranks": [table["first_rank"][row] for table in tables],
            }
            for row, caption_id in enumerate(tables[0]["caption_id"])
            if len({bool(hits[row]) for hits in sure}) > 1
        ]
        shown = sorted(disputed, key=lambda each: (-max(each["ranks"]), each["caption_id"]))[:number]
        return _with_captions(shown, folder_of(people, runs[0], key))
    return []


def _with_captions(queries: list[dict[str, Any]], people: Path | None) -> list[dict[str, Any]]:
    """Add "caption" and "picture", from the data set at `people` where there is one."""
    if people is None:
        return [{**query, "caption": None, "picture": None} for query in queries]
    dataset = PersonDataset(people)
    rows = dataset.rows(form="long")
    captions = dict(zip(rows.column("caption_id"), rows.column("caption"), strict=True))
    return [
        {**query, "caption": captions[query["caption_id"]], "picture": dataset.picture(query["image_id"])}
        for query in queries
    ]
