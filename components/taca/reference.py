"""A base model by reference: where it lies, which revision, and the digest of every file.

`models/base.json` is all that the rest of the system knows of the model it adapts, so a folder on disk and a published
model are the same thing: `{"location", "revision", "files": {relative path: sha256}}`. A published model stays in the
Hugging Face cache; it is never copied. A local location is relative to the reference file, so that the pair can move
together.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, ParameterError
from components.files import file_digest

if TYPE_CHECKING:
    import torch
    from diffusers import FluxPipeline

# The parts of a FluxPipeline that can be left out, and which others they bring along.
COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
TEXT = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def write_reference(location: str | Path, path: Path, *, revision: str | None = None) -> dict[str, Any]:
    """Describe the pipeline at `location` in the JSON file `path`, and return what was written.

    `location` is a folder, or with `revision` (a full commit hash) the id of a model on the Hugging Face hub that is
    already in the local cache. Raises `ParameterError` for a revision that is not pinned, `DataError` when no pipeline
    is found.
    """
    if revision is None:
        folder = Path(location)
        stored = _relative(folder.resolve(), path.resolve().parent)
    else:
        if len(revision) != 40 or set(revision) - set("0123456789abcdef"):
            raise ParameterError(
                f"revision {revision!r} of {location}: give the full 40-digit commit, a branch can move"
            )
        stored = str(location)
        folder = _snapshot(stored, revision)
    reference = {
        "location": stored,
        "revision": revision,
        "files": {name: file_digest(folder / name) for name in _pipeline_files(folder)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(reference, indent=2, sort_keys=True) + "\n")
    return reference


def load_base(
    reference_path: Path, *, components: Iterable[str] = COMPONENTS, dtype: "torch.dtype | None" = None
) -> "FluxPipeline":
    """The pipeline a reference points to, after checking the digests of the files that are read; in eval mode, on the
    CPU.

    `components` names the parts to load (`TEXT` to encode captions); the others are None and their files are neither
    read nor checked. Raises `ParameterError` for an unknown part, `DataError` for a missing, changed or unreadable
    file.
    """
    import diffusers
    import torch
    import transformers
    from diffusers import FluxPipeline

    wanted = set(components)
    if unknown := wanted - set(COMPONENTS):
        raise ParameterError(f"load_base: unknown components {sorted(unknown)}; there are {', '.join(COMPONENTS)}")
    reference = read_reference(reference_path)
    folder = _folder_of(reference, reference_path)
    verify_files(folder, reference["files"], only=wanted)
    pipeline_class = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    if pipeline_class != "FluxPipeline":
        raise DataError(f"{folder}/model_index.json: a {pipeline_class}; only FluxPipeline folders are supported")
    left_out: dict[str, Any] = {name: None for name in COMPONENTS if name not in wanted}
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    pipe = FluxPipeline.from_pretrained(
        folder, dtype=dtype or torch.float32, use_safetensors=True, local_files_only=True, **left_out
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_reference(path: Path) -> dict[str, Any]:
    """The contents of a reference file, checked for its three keys. Raises `DataError`."""
    try:
        reference = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no model reference there; run the base_model stage") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(reference, dict) or set(reference) != {"location", "revision", "files"}:
        raise DataError(f"{path}: a model reference has the keys location, revision and files")
    if "model_index.json" not in reference["files"]:
        raise DataError(f"{path}: lists no model_index.json, so it describes no pipeline")
    return reference


def verify_files(folder: Path, files: Mapping[str, str], only: Iterable[str] | None = None) -> None:
    """Compare files under `folder` with their SHA-256; `only` limits it to these sub-folders and the top level.

    Raises `DataError` naming the first file that is missing or differs.
    """
    kept = None if only is None else set(only)
    for name, expected in sorted(files.items()):
        part = name.split("/", 1)[0]
        if kept is not None and "/" in name and part not in kept:
            continue
        if not (folder / name).is_file():
            raise DataError(
                f"{folder / name}: missing, but the model reference lists it; rebuild or download the model again"
            )
        if (actual := file_digest(folder / name)) != expected:
            raise DataError(
                f"{folder / name}: SHA-256 {actual[:12]}... differs from the reference's {expected[:12]}...; "
                "rebuild or download the model, or write a new reference"
            )


def _relative(folder: Path, start: Path) -> str:
    """`folder` as seen from `start`, with forward slashes, so that the reference does not depend on the machine."""
    return Path(os.path.relpath(folder, start)).as_posix()


def _pipeline_files(folder: Path) -> list[str]:
    """model_index.json and what lies in the sub-folders of known components: the files that loading reads."""
    if not (folder / "model_index.json").is_file():
        raise DataError(f"{folder}: no model_index.json, so this is no diffusers pipeline")
    found = [file for part in COMPONENTS for file in (folder / part).rglob("*") if file.is_file()]
    return ["model_index.json", *sorted(file.relative_to(folder).as_posix() for file in found)]


def _folder_of(reference: Mapping[str, Any], reference_path: Path) -> Path:
    if reference["revision"] is not None:
        return _snapshot(reference["location"], reference["revision"])
    folder = (reference_path.parent / reference["location"]).resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder that {reference_path} points to is missing; run the base_model stage")
    return folder


def _snapshot(model: str, revision: str) -> Path:
    """The cached snapshot of a published model; never downloads."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise DataError(
            f"{model}@{revision}: not in the Hugging Face cache; run `hf download {model} --revision {revision}`"
        ) from None
