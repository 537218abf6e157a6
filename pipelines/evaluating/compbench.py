"""Scores folders of pictures with the metrics of T2I-CompBench.

Beyond the numbers of the paper: intervals over prompts, and paired differences between two folders.
"""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ParameterError
from components.evaluation.compbench.pictures import PromptPicture, open_picture
from components.evaluation.compbench.prompts import BLIP_VQA, CLIP_SCORE, METRIC, THREE_IN_ONE, relations
from components.evaluation.compbench.published import UNIDET_FILE, write_result
from components.files import file_digest, write_atomically
from pipelines.evaluating.compbench_inputs import ArmPictures, Category, Weights, find_categories, require_a_metric

if TYPE_CHECKING:
    from components.evaluation.compbench.scoring import CategoryScores, Instruments


def compbench(
    prompts: Path, images: Path, *, baseline: Path | None, weights: Weights, output: Path, rows: int, per_prompt: int
) -> None:
    """Score `images` (and `baseline`) on one prompt file, or on a folder of them; print a table and write `output`.

    output: results.json; phrases.json; for each category a folder with grid.png (`rows` prompts, 0 for none) and the files of the
    published scripts, those of the baseline in baseline/. Raises ParameterError when no metric can be computed, DataError for
    inputs that cannot be read.
    """
    from pipelines.evaluating.compbench_table import show_results
    from pipelines.terminal.console import TableConsole

    if rows < 0 or per_prompt < 1:
        raise ParameterError(f"compbench: --grid {rows} must be at least 0 and --per-prompt {per_prompt} at least 1")
    categories, absent = find_categories(prompts, images, baseline, per_prompt)
    require_a_metric(categories, weights)
    console = TableConsole()
    instruments, about = _instruments(categories, weights, output)
    results: dict[str, Any] = {"categories": {}, "measured_with": about, "without_pictures": absent}
    for category in categories:
        scores = [_score(category, arm, instruments, console) for arm in category.arms]
        results["categories"][category.name] = _results(category, scores)
        _write_published(scores, output / category.name)
        if rows:
            _write_grid(category, output / category.name / "grid.png", rows)
    write_atomically(output / "results.json", json.dumps(results, indent=2) + "\n")
    show_results(results, console)
    console.print(f"wrote {output}", soft_wrap=True)


def _instruments(
    categories: Sequence[Category], weights: Weights, output: Path
) -> "tuple[Instruments, dict[str, Any]]":
    """Return the models and readings of prompts that these categories need, and their digests for the results."""
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
    """Return the noun phrases of the prompts that BLIP or the complex categories need, and write them to phrases.json."""
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


def _score(category: Category, arm: ArmPictures, instruments: "Instruments", console: Any) -> "CategoryScores":
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
    """The entry of a category in results.json."""
    from components.evaluation.compbench.results import arm_results, differences

    arms = {arm.name: arm_results(arm.matched, found) for arm, found in zip(category.arms, scores, strict=True)}
    prompts = {"prompts": len(category.prompts), "repeated": category.repeated}
    found: dict[str, Any] = {"metric": METRIC[category.name], **prompts, "arms": arms}
    if len(arms) == 2:
        found["difference"] = differences(*arms.values())
    return found


def _write_published(scores: "Sequence[CategoryScores]", folder: Path) -> None:
    for place, found in zip((folder, folder / "baseline"), scores, strict=False):
        for metric in (BLIP_VQA, CLIP_SCORE, THREE_IN_ONE):
            if metric in found.scores:
                write_result(place, metric, found.scores[metric])


def _write_grid(category: Category, path: Path, rows: int) -> None:
    """Write the first picture of up to `rows` prompts, spread over the file, as neighbours are variations of each other."""
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
    """prompt -> its picture with the lowest number."""
    first: dict[str, PromptPicture] = {}
    for picture in pictures:
        first.setdefault(picture.prompt, picture)
    return first
