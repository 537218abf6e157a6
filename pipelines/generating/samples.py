"""Export pictures as single files under the names that T2I-CompBench's scripts use.

`samples/<prompt>_<number>.png` with a running number of six digits over all pictures (GORS_finetune/inference_eval.py). Its
evaluation sorts by the number and takes the text before the first underscore for the prompt (BLIPvqa_eval/BLIP_vqa.py). Pictures of
LoRAs that are drawn in turn are in a folder for each, `samples/<label>/`, so that each is evaluated by itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from components.errors import ParameterError
from components.files import remove_temporaries, write_atomically, written_atomically
from pipelines.generating.plan import Picture, Shard

SAMPLES, RENAMED = "samples", "samples.json"
LONGEST_NAME = 255
"""The limit of common file systems, in bytes."""


def file_name(picture: Picture) -> str:
    """Return `<prompt>_<6-digit number>.png`, with spaces for characters not allowed in file names and a long prompt cut."""
    number = f"_{picture.image_id:06d}.png"
    text = "".join(" " if letter in "/\\" or not letter.isprintable() else letter for letter in picture.prompt)
    kept = text.encode()[: LONGEST_NAME - len(number)].decode("utf-8", "ignore")
    return f"{kept}{number}"


def export_samples(folder: Path, shards: Sequence[Shard]) -> tuple[int, list[dict[str, str]]]:
    """Write every picture of the finished `shards` as a file, unless it exists.

    Returns the number of files written, and those whose name is not the prompt, which samples.json lists too.
    """
    samples = folder / SAMPLES
    if samples.is_symlink():
        raise ParameterError(f"{samples}: is a symbolic link; remove it")
    samples.mkdir(exist_ok=True)
    remove_temporaries(samples)
    written, renamed = 0, []
    for shard in shards:
        images = pq.read_table(folder / "shards" / shard.name, columns=["image"])["image"]
        for picture, image in zip(shard.pictures, images, strict=True):
            name = (
                f"{picture.adapter.replace('/', '_')}/{file_name(picture)}" if picture.adapter else file_name(picture)
            )
            (samples / name).parent.mkdir(exist_ok=True)
            written += _write(samples / name, image.as_py())
            if reason := _why_renamed(picture, file_name(picture)):
                renamed.append({"file": name, "prompt": picture.prompt, "reason": reason})
    write_atomically(folder / RENAMED, json.dumps(renamed, indent=1, ensure_ascii=False) + "\n")
    return written, renamed


def _why_renamed(picture: Picture, name: str) -> str | None:
    """Return why a script that reads the prompt from the file name gets another text, or None."""
    if name != f"{picture.prompt}_{picture.image_id:06d}.png":
        return "the prompt cannot be a file name"
    if "_" in picture.prompt:
        return "the published scripts read a prompt up to its first underscore"
    return None


def _write(path: Path, image: bytes) -> int:
    if path.is_file() and not path.is_symlink() and path.read_bytes() == image:
        return 0
    with written_atomically(path) as temporary:
        temporary.write_bytes(image)
    return 1
