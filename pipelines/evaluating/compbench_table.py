"""The table of compbench results, with notes on what is missing."""

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from components.evaluation.compbench.blip_vqa import PUBLISHED_SIZE

if TYPE_CHECKING:
    from rich.console import Console


def show_results(results: dict[str, Any], console: "Console") -> None:
    """Print the table and the notes of `results.json`."""
    table = Table(caption="in brackets: 95 % bootstrap intervals over prompts", caption_justify="left")
    for heading in ("category", "metric", "pictures of", "pictures", "score", "minus baseline"):
        table.add_column(heading, justify="right" if heading in ("pictures", "score", "minus baseline") else "left")
    notes = [f"{name}: no folder of pictures, not scored" for name in results["without_pictures"]]
    pixels = results["measured_with"].get("blip", {}).get("pixels", PUBLISHED_SIZE)
    if pixels != PUBLISHED_SIZE:
        notes.append(f"BLIP used {pixels} x {pixels} pixels, in the paper {PUBLISHED_SIZE} (--blip-size)")
    for name, category in results["categories"].items():
        if category["repeated"]:
            notes.append(f"{name}: {category['repeated']} lines repeat a prompt; its pictures count again as published")
        for place, (arm, found) in enumerate(category["arms"].items()):
            for metric, score in found["metrics"].items():
                change = category.get("difference", {}).get(metric) if place == 0 else None
                cells = (name, metric, arm, str(found["pictures"]), _interval(score), _interval(change, "+"))
                table.add_row(*(escape(cell) for cell in cells))
            notes += [f"{name} of {arm}: {note}" for note in _notes(found)]
    console.print(table)
    for note in notes:
        console.print(escape(note), soft_wrap=True)


def _interval(score: dict[str, float] | None, sign: str = "") -> str:
    return f"{score['mean']:{sign}.4f} [{score['low']:{sign}.4f}, {score['high']:{sign}.4f}]" if score else ""


def _notes(found: dict[str, Any]) -> list[str]:
    """The metrics that were not measured, and the pictures that are missing or do not belong, in one arm of a category."""
    notes = [f"{metric} left out: {reason}" for metric, reason in found["skipped"].items()]
    if found["missing"]:
        total, example = sum(found["missing"].values()), next(iter(found["missing"]))
        notes.append(f"{total} pictures of {len(found['missing'])} prompts are missing, such as of {example!r}")
    if found["extra"]:
        notes.append(f"{len(found['extra'])} files are not pictures of these prompts, such as {found['extra'][0]!r}")
    return notes
