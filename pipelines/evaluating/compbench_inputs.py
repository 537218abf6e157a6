"""The inputs of compbench: prompt files with the pictures drawn for them, and the weights of the metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError, ParameterError
from components.evaluation.compbench.pictures import Matched, match_pictures
from components.evaluation.compbench.prompts import (
    BLIP_VQA,
    CLIP_SCORE,
    METRIC,
    THREE_IN_ONE,
    UNIDET,
    prompt_files,
    read_prompts,
)
from components.evaluation.compbench.published import UNIDET_FILE

OPTIONS = {BLIP_VQA: "--blip FOLDER", CLIP_SCORE: "--clip FILE", UNIDET: f"UniDet's result at {UNIDET_FILE}"}
"""What a user gives for each metric."""
PARTS = {THREE_IN_ONE: (BLIP_VQA, CLIP_SCORE, UNIDET)}


@dataclass(frozen=True)
class ArmPictures:
    """The pictures of one category in a folder, which holds samples/ or the pictures, and perhaps UniDet's result."""

    name: str
    folder: Path
    matched: Matched


@dataclass(frozen=True)
class Category:
    """A prompt file and the pictures drawn for it: those of the first arm, and perhaps of a baseline.

    prompts: each once. repeated: the number of lines that repeat an earlier prompt.
    """

    name: str
    file: Path
    prompts: Sequence[str]
    repeated: int
    arms: Sequence[ArmPictures]

    @property
    def needs(self) -> tuple[str, ...]:
        """The metrics that the metric of this category is computed from."""
        return PARTS.get(METRIC[self.name], (METRIC[self.name],))


@dataclass(frozen=True)
class Weights:
    """The paths of the models and files to measure with, and the picture size of BLIP in pixels."""

    blip: Path | None
    clip: Path | None
    phrases: Path | None
    blip_size: int | None


def find_categories(
    prompts: Path, images: Path, baseline: Path | None, per_prompt: int
) -> tuple[list[Category], list[str]]:
    """Return the categories with pictures in every folder, and the names of those without. Raises DataError when none has."""
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
            ArmPictures(arm, _results_folder(folder), match_pictures(texts, _samples(folder), per_prompt))
            for arm, folder in folders.items()
        ]
        distinct = list(dict.fromkeys(texts))
        found.append(Category(category, file, distinct, len(texts) - len(distinct), arms))
    if not found:
        raise DataError(f"{images}: no folder of pictures named {' or '.join(absent)}: one per category is needed")
    return found, absent


def _samples(folder: Path) -> Path:
    return folder / "samples" if (folder / "samples").is_dir() else folder


def _results_folder(folder: Path) -> Path:
    """The folder that the published scripts write to: beside samples/."""
    folder = folder.resolve()
    return folder.parent if folder.name == "samples" else folder


def _name(folder: Path) -> str:
    """The name of a folder of pictures in tables and grids."""
    return _results_folder(folder).name


def require_a_metric(categories: Sequence[Category], weights: Weights) -> None:
    """Raise ParameterError when no metric can be computed with these weights."""
    needed = list(dict.fromkeys(metric for category in categories for metric in category.needs))
    given = {BLIP_VQA: weights.blip, CLIP_SCORE: weights.clip}
    given[UNIDET] = next((file for category in categories for file in _unidet_results(category)), None)
    if not any(given[metric] for metric in needed):
        wanted = ", ".join(f"{OPTIONS[metric]} for {metric}" for metric in needed)
        names = ", ".join(category.name for category in categories)
        raise ParameterError(f"compbench: no metric of {names} can be computed: give {wanted}")


def _unidet_results(category: Category) -> list[Path]:
    """The existing results of UniDet for a category that uses them."""
    files = [arm.folder / UNIDET_FILE for arm in category.arms] if UNIDET in category.needs else []
    return [file for file in files if file.is_file()]
