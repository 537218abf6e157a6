"""The validation prompts, one file per category, and the relation in each complex prompt.

category      file                  metric in the paper
color         color_val.txt         BLIP-VQA
shape         shape_val.txt         BLIP-VQA
texture       texture_val.txt       BLIP-VQA
spatial       spatial_val.txt       UniDet
non_spatial   non_spatial_val.txt   CLIPScore
complex       complex_val.txt       3-in-1
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from components.errors import DataError, ParameterError
from components.text_files import read_lines

BLIP_VQA, CLIP_SCORE, UNIDET, THREE_IN_ONE = "BLIP-VQA", "CLIPScore", "UniDet", "3-in-1"
METRIC = {
    "color": BLIP_VQA,
    "shape": BLIP_VQA,
    "texture": BLIP_VQA,
    "spatial": UNIDET,
    "non_spatial": CLIP_SCORE,
    "complex": THREE_IN_ONE,
}
SPATIAL_LIST, ACTION_LIST = "complex_val_spatial.txt", "complex_val_action.txt"

Relation = Literal["spatial", "action", "both"]


def prompt_files(path: Path) -> dict[str, Path]:
    """Return category -> file, for one `<category>_val.txt` or a folder of them.

    Raises DataError when there is none, ParameterError for a file of another name: the category decides the metric.
    """
    if path.is_dir():
        found = {category: path / f"{category}_val.txt" for category in METRIC}
        found = {category: file for category, file in found.items() if file.is_file()}
        if not found:
            raise DataError(
                f"{path}: no prompt file; one of {', '.join(f'{name}_val.txt' for name in METRIC)} is needed"
            )
        return found
    category = path.name.removesuffix("_val.txt")
    if category not in METRIC or not path.name.endswith("_val.txt"):
        allowed = ", ".join(f"{name}_val.txt" for name in METRIC)
        raise ParameterError(f"{path.name}: the name of a prompt file says its category; name it one of {allowed}")
    if not path.is_file():
        raise DataError(f"{path}: no such prompt file")
    return {category: path}


def read_prompts(path: Path) -> list[str]:
    """Read the prompts of a file, one per line; text after a tab is not part of a prompt (inference_eval.py).

    A prompt that the file repeats is repeated: the published scripts draw its pictures again, and it weighs as much more in their
    mean (the color file before September 2025 repeats five). Raises DataError where the file cannot be read or is empty.
    """
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a prompt file ({error})") from error
    prompts = [prompt for prompt in (line.split("\t")[0].strip() for line in lines) if prompt]
    if not prompts:
        raise DataError(f"{path}: holds no prompt; write one per line")
    return prompts


def relations(prompts: Sequence[str], folder: Path) -> dict[str, Relation]:
    """Return the relation in each complex prompt, from the two lists beside `complex_val.txt`, as 3_in_1.py does.

    Spatial where in the spatial list, else action where in the action list, else both. Prompts are compared up to the first full
    stop, in lower case. Raises DataError where a list is missing.
    """
    for name in (SPATIAL_LIST, ACTION_LIST):
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: missing; it lists the complex prompts with one relation")
    spatial, action = ({_key(line) for line in read_prompts(folder / name)} for name in (SPATIAL_LIST, ACTION_LIST))
    found: dict[str, Relation] = {}
    for prompt in prompts:
        key = _key(prompt)
        found[prompt] = "spatial" if key in spatial else "action" if key in action else "both"
    return found


def _key(prompt: str) -> str:
    return prompt.split(".")[0].lower()
