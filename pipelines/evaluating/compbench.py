"""`python -m pipelines compbench --prompts color_val.txt --images drawn`: T2I-CompBench's metrics over folders of pictures.

Beside the paper's own numbers it gives what the paper has not: intervals over prompts, and two folders compared prompt by prompt.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, ParameterError
from components.evaluation.compbench.pictures import PER_PROMPT, Matched, PromptPicture, match_pictures, open_picture
from components.evaluation.compbench.prompts import (
    BLIP_VQA,
    CLIP_SCORE,
    METRIC,
    THREE_IN_ONE,
    UNIDET,
    prompt_files,
    read_prompts,
    relations,
)
from components.evaluation.compbench.published import UNIDET_FILE, write_result
from components.files import file_digest, write_atomically

if TYPE_CHECKING:
    from components.evaluation.compbench.scoring import CategoryScores, Instruments

OUTPUT, ROWS = Path("results/compbench"), 8
TO_GIVE = {BLIP_VQA: "--blip FOLDER", CLIP_SCORE: "--clip FILE", UNIDET: f"UniDet's result at {UNIDET_FILE}"}
PARTS = {THREE_IN_ONE: (BLIP_VQA, CLIP_SCORE, UNIDET)}


@dataclass(frozen=True)
class Arm:
    """One folder's pictures of one category. UniDet's result may lie in `folder`, which holds samples/ or the pictures."""

    name: str
    folder: Path
    matched: Matched


@dataclass(frozen=True)
class Category:
    """One prompt file, and the pictures drawn for it: the first arm's, and perhaps a baseline's."""

    name: str
    file: Path
    prompts: Sequence[str]
    arms: Sequence[Arm]

    @property
    def needs(self) -> tuple[str, ...]:
        """What its metric is made of."""
        return PARTS.get(METRIC[self.name], (METRIC[self.name],))


@dataclass(frozen=True)
class Weights:
    """What the user brought to measure with: paths, and BLIP's picture size in pixels."""

    blip: Path | None = None
    clip: Path | None = None
    phrases: Path | None = None
    blip_size: int | None = None


def compbench(
    prompts: Path,
    images: Path,
    *,
    baseline: Path | None = None,
    weights: Weights | None = None,
    output: Path = OUTPUT,
    rows: int = ROWS,
    per_prompt: int = PER_PROMPT,
) -> None:
    """Score `images` (and `baseline`) on one prompt file, or on a folder of them; print a table and write `output`.

    output: results.json; phrases.json; for each category a folder with grid.png (`rows` prompts, 0 for none) and the files of the
    published scripts, the baseline's in baseline/. Raises ParameterError when no metric can be computed, DataError for what
    cannot be read.
    """
    from rich.console import Console

    weights = weights or Weights()
    if rows < 0 or per_prompt < 1:
        raise ParameterError(f"compbench: --grid {rows} must be at least 0 and --per-prompt {per_prompt} at least 1")
    categories, absent = _categories(prompts, images, baseline, per_prompt)
    _require_a_metric(categories, weights)
    console = Console()
    instruments, about = _instruments(categories, weights, output)
    results: dict[str, Any] = {"categories": {}, "measured_with": about, "without_pictures": absent}
    for category in categories:
        scores = [_score(category, arm, instruments, console) for arm in category.arms]
        results["categories"][category.name] = _results(category, scores)
        _write_published(scores, output / category.name)
        if rows:
            _write_grid(category, output / category.name / "grid.png", rows)
    write_atomically(output / "results.json", json.dumps(results, indent=2) + "\n")
    _show(results, console)
    console.print(f"wrote {output}", soft_wrap=True)


def _categories(
    prompts: Path, images: Path, baseline: Path | None, per_prompt: int
) -> tuple[list[Category], list[str]]:
    """The categories with pictures in every folder, and of several the names of those without."""
    several = prompts.is_dir()
    roots = {_name(images): images}
    if baseline:
        name = _name(baseline)
        roots[name if name not in roots else f"{name} (baseline)"] = baseline
    found, absent = [], []
    for category, file in prompt_files(prompts).items():
        folders = {arm: root / category if several else root for arm, root in roots.items()}
        if several and not all(folder.is_dir() for folder in folders.values()):
            absent.append(category)
            continue
        texts = read_prompts(file)
        arms = [
            Arm(arm, _place(folder), match_pictures(texts, _samples(folder), per_prompt))
            for arm, folder in folders.items()
        ]
        found.append(Category(category, file, texts, arms))
    if not found:
        raise DataError(f"{images}: no folder of pictures named {' or '.join(absent)}; one a category is needed")
    return found, absent


def _samples(folder: Path) -> Path:
    return folder / "samples" if (folder / "samples").is_dir() else folder


def _place(folder: Path) -> Path:
    """Where the published scripts write: beside samples/."""
    folder = folder.resolve()
    return folder.parent if folder.name == "samples" else folder


def _name(folder: Path) -> str:
    """What tables and grids call a folder of pictures."""
    return _place(folder).name


def _require_a_metric(categories: Sequence[Category], weights: Weights) -> None:
    """Refuse, before anything is loaded, to run where nothing could be measured."""
    needed = list(dict.fromkeys(metric for category in categories for metric in category.needs))
    given = {BLIP_VQA: weights.blip, CLIP_SCORE: weights.clip}
    given[UNIDET] = next((file for category in categories for file in _unidet(category)), None)
    if not any(given[metric] for metric in needed):
        wanted = ", ".join(f"{TO_GIVE[metric]} for {metric}" for metric in needed)
        names = ", ".join(category.name for category in categories)
        raise ParameterError(f"compbench: no metric of {names} can be computed; give {wanted}")


def _unidet(category: Category) -> list[Path]:
    """Results of UniDet that are there and would be used."""
    files = [arm.folder / UNIDET_FILE for arm in category.arms] if UNIDET in category.needs else []
    return [file for file in files if file.is_file()]


def _instruments(
    categories: Sequence[Category], weights: Weights, output: Path
) -> "tuple[Instruments, dict[str, Any]]":
    """The models and readings of prompts that these categories need, and what the results say about them."""
    import torch

    from components.evaluation.compbench.blip_vqa import BlipVqa
    from components.evaluation.compbench.clip_score import ClipScore
    from components.evaluation.compbench.scoring import Instruments

    device = "cuda" if torch.cuda.is_available() else "cpu"
    needed = {metric for category in categories for metric in category.needs}
    about: dict[str, Any] = {}
    blip = clip = None
    readings = _readings(categories, weights, output, about)
    if weights.blip and BLIP_VQA in needed:
        blip = BlipVqa.open(weights.blip, image_size=weights.blip_size, device=device)
        files = sorted(file for file in weights.blip.iterdir() if file.suffix in (".safetensors", ".bin"))
        about["blip"] = {"pixels": blip.image_size, "weights": {file.name: file_digest(file) for file in files}}
    if weights.clip and CLIP_SCORE in needed:
        clip = ClipScore.open(weights.clip, device=device)
        about["clip"] = {"architecture": clip.architecture, "weights": {weights.clip.name: file_digest(weights.clip)}}
    return Instruments(blip, clip, readings), about


def _readings(categories: Sequence[Category], weights: Weights, output: Path, about: dict[str, Any]) -> dict[str, Any]:
    """How the prompts read that BLIP is asked about, or CLIP without their adjectives; kept in phrases.json."""
    from components.evaluation.compbench import phrases

    asked = [
        prompt
        for category in categories
        if (weights.blip and BLIP_VQA in category.needs) or (weights.clip and METRIC[category.name] == THREE_IN_ONE)
        for prompt in category.prompts
    ]
    if not asked:
        return {}
    if weights.phrases:
        readings, about["phrases"] = phrases.read_phrases(weights.phrases, asked), f"from {weights.phrases.name}"
    else:
        readings, about["phrases"] = phrases.parse_prompts(asked), phrases.spacy_version()
    write_atomically(output / "phrases.json", json.dumps(phrases.to_json(readings), indent=2) + "\n")
    return readings


def _score(category: Category, arm: Arm, instruments: "Instruments", console: Any) -> "CategoryScores":
    from rich.progress import track

    from components.evaluation.compbench.scoring import score_category

    bar: dict[str, Any] = {"console": console, "transient": True, "disable": not console.is_terminal}
    return score_category(
        category.name,
        arm.matched.pictures,
        instruments,
        unidet=arm.folder / UNIDET_FILE,
        relations=relations(category.prompts, category.file.parent) if METRIC[category.name] == THREE_IN_ONE else None,
        progress=partial(track, description=f"{category.name} of {arm.name}", **bar),
    )


def _results(category: Category, scores: "Sequence[CategoryScores]") -> dict[str, Any]:
    """What results.json says about a category."""
    from components.evaluation.compbench.results import arm_results, differences

    arms = {arm.name: arm_results(arm.matched, found) for arm, found in zip(category.arms, scores, strict=True)}
    found: dict[str, Any] = {"metric": METRIC[category.name], "prompts": len(category.prompts), "arms": arms}
    if len(arms) == 2:
        found["difference"] = differences(*arms.values())
    return found


def _write_published(scores: "Sequence[CategoryScores]", folder: Path) -> None:
    for place, found in zip((folder, folder / "baseline"), scores, strict=False):
        for metric in (BLIP_VQA, CLIP_SCORE, THREE_IN_ONE):
            if metric in found.scores:
                write_result(place, metric, found.scores[metric])


def _write_grid(category: Category, path: Path, rows: int) -> None:
    """The first picture of up to `rows` prompts, spread over the file: neighbours in it are variations of each other."""
    import numpy as np

    from components.evaluation.figures import save_png
    from components.evaluation.grids import side_by_side

    firsts = [_first_pictures(arm.matched.pictures) for arm in category.arms]
    drawn = [prompt for prompt in category.prompts if any(prompt in first for first in firsts)]
    rows = min(rows, len(drawn))
    chosen = [drawn[place * len(drawn) // rows] for place in range(rows)]
    pictures = [[open_picture(first[prompt]) if prompt in first else None for first in firsts] for prompt in chosen]
    save_png(np.array(side_by_side(chosen, [arm.name for arm in category.arms], pictures)), path)


def _first_pictures(pictures: Iterable[PromptPicture]) -> dict[str, PromptPicture]:
    """prompt -> its picture of the lowest number."""
    first: dict[str, PromptPicture] = {}
    for picture in pictures:
        first.setdefault(picture.prompt, picture)
    return first


def _show(results: dict[str, Any], console: Any) -> None:
    """The table, and below it what is missing or left out."""
    from rich.markup import escape
    from rich.table import Table

    from components.evaluation.compbench.blip_vqa import PUBLISHED_SIZE

    table = Table(caption="in brackets: 95 % bootstrap intervals over prompts", caption_justify="left")
    for heading in ("category", "metric", "pictures of", "pictures", "score", "minus baseline"):
        table.add_column(heading, justify="right" if heading in ("pictures", "score", "minus baseline") else "left")
    notes = [f"{name}: no folder of pictures, not scored" for name in results["without_pictures"]]
    pixels = results["measured_with"].get("blip", {}).get("pixels", PUBLISHED_SIZE)
    if pixels != PUBLISHED_SIZE:
        notes.append(f"BLIP looked at {pixels} x {pixels} pixels, in the paper at {PUBLISHED_SIZE} (--blip-size)")
    for name, category in results["categories"].items():
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
    """What does not fit or was not measured in one arm of a category."""
    notes = [f"{metric} left out: {reason}" for metric, reason in found["skipped"].items()]
    if found["missing"]:
        total, example = sum(found["missing"].values()), next(iter(found["missing"]))
        notes.append(f"{total} pictures of {len(found['missing'])} prompts are not there, such as of {example!r}")
    if found["extra"]:
        notes.append(f"{len(found['extra'])} files are no picture of these prompts, such as {found['extra'][0]!r}")
    return notes
