"""A base model by reference: its location, its revision, and the digest of every file.

Everything else reads the model through `models/base.json`, `{"location", "revision", "files": {relative path: sha256}}`, so a
folder on disk and a published model are used alike. A published model stays in the Hugging Face cache and is never copied. A
local location is relative to the reference file, so that both can move together.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.taca.memory_options import Quantization
from components.taca.pipeline_folder import INDEX, PipelineFolder
from components.taca.quantization import quantization_of, read_gguf, require_quantizable
from components.taca.registry import CONVENTIONS

# Parts of pipelines by purpose, over all supported classes; those that a pipeline does not have are ignored.
COMPONENTS = tuple(dict.fromkeys(part for conventions in CONVENTIONS.values() for part in conventions.parts))
TEXT = tuple(dict.fromkeys(part for conventions in CONVENTIONS.values() for part in conventions.text_parts))

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by their names in params.yaml


def write_reference(location: str | Path, path: Path, *, revision: str | None = None) -> dict[str, Any]:
    """Describe the pipeline at `location` in the JSON file `path`, and return what was written.

    `location` is a folder, or with `revision` (a full commit hash) the id of a model on the Hugging Face hub that is
    already in the local cache. Raises `ParameterError` for a revision that is not pinned, `DataError` if the pipeline is
    missing, incomplete, or of a class that is not supported.
    """
    if revision is None:
        folder = Path(location)
        if not folder.is_dir():
            raise DataError(f"{location}: no such folder; for a model on the Hugging Face hub, give the revision too")
        stored = Path(os.path.relpath(folder.resolve(), path.resolve().parent)).as_posix()
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
        "files": {name: file_digest(folder / name) for name in PipelineFolder(folder).files()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(reference, indent=2, sort_keys=True) + "\n")
    return reference


def require_folder(source: Path, sha256: str | None) -> None:
    """Require that a pipeline folder is the one whose `folder_digest` is `sha256`.

    Raises `ParameterError` where no digest is given, naming it, and `DataError` where the folder is missing, incomplete or another.
    """
    if not source.is_dir():
        raise DataError(f"base_model.source = {source}: no such folder")
    found = folder_digest(source)
    if sha256 is None:
        raise ParameterError(f"base_model.sha256 is null: set it to {found}, the digest of {source}")
    if found != sha256:
        raise DataError(f"{source}: its digest is {found}; expected is base_model.sha256 = {sha256}")


def copy_folder(source: Path, target: Path, sha256: str | None) -> None:
    """Copy the files of a pipeline folder to `target`, which must not be there. Raises as `require_folder` does."""
    require_folder(source, sha256)
    for name in PipelineFolder(source).files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and digests of a pipeline folder's files, by which it is pinned."""
    files = {name: file_digest(folder / name) for name in PipelineFolder(folder).files()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def load_base(
    reference_path: Path,
    *,
    components: Iterable[str] = COMPONENTS,
    dtype: torch.dtype = torch.float32,
    quantize: Quantization = "none",
    gguf: Path | None = None,
) -> Any:
    """Load the pipeline of a reference after checking the digests of the files that are read; in eval mode, on the CPU.

    Its class is the one that `model_index.json` names, of a transformer in `components.taca.registry`; its weights are in `dtype`.
    `components` names the parts to load (`TEXT` to encode captions); the others are None and their files are neither read nor
    checked. An encoder that the folder leaves out (SD3.5's T5) is None too; its fallback is loaded with the text. Weights may be
    sharded, and in a variant ("fp16") where there are no others.

    quantize: quantises the linear layers of the transformer and of large text encoders while they are read. gguf: a GGUF file to
    read the transformer from; of the folder's transformer only the config is read, then.

    Raises `ParameterError` for an unknown part and a quantisation that is not possible, `DataError` for a missing, changed or
    unreadable file.
    """
    import diffusers
    import transformers
    from safetensors import SafetensorError

    if unknown := set(components) - set(COMPONENTS):
        raise ParameterError(f"load_base: unknown components {sorted(unknown)}; there are {', '.join(COMPONENTS)}")
    require_quantizable(quantize, dtype)
    reference = read_reference(reference_path)
    location, files = _folder_of(reference, reference_path), reference["files"]
    verify_files(location, {INDEX: files[INDEX]})
    folder = PipelineFolder(location)
    parts = folder.parts_for(components)
    replaced = {"transformer"} & parts if gguf else set()
    read, variant = folder.files_read(files, parts - replaced)
    read += [config for part in replaced if (config := f"{part}/config.json") in files]
    verify_files(location, {name: files[name] for name in read})
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    given: dict[str, Any] = dict.fromkeys(folder.named - parts)
    if gguf and replaced:
        given["transformer"] = read_gguf(gguf, location, folder.transformer, dtype)
    if config := quantization_of(quantize, folder, parts - replaced):
        given["quantization_config"] = config
    try:
        pipe = getattr(diffusers, folder.pipeline).from_pretrained(
            location, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True, **given
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{location}: cannot be read as a {folder.pipeline} ({reason})") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_reference(path: Path) -> dict[str, Any]:
    """Read a reference file and check its three keys. Raises `DataError`."""
    try:
        reference = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no model reference there; run the base_model stage") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(reference, dict) or set(reference) != {"location", "revision", "files"}:
        raise DataError(f"{path}: a model reference has the keys location, revision and files")
    if INDEX not in reference["files"]:
        raise DataError(f"{path}: does not list {INDEX}, so it is not the reference of a pipeline")
    for name in reference["files"]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{path}: lists {name}, which is outside the model's folder")
    return reference


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Compare files under `folder` with their SHA-256. Raises `DataError` naming the first that is missing or differs."""
    for name, expected in sorted(files.items()):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder / name}: missing, but the model reference lists it; rebuild or download the model again"
            )
        if (actual := file_digest(folder / name)) != expected:
            raise DataError(
                f"{folder / name}: SHA-256 {actual[:12]}... differs from the reference's {expected[:12]}...; "
                "rebuild or download the model, or write a new reference"
            )


def _folder_of(reference: Mapping[str, Any], reference_path: Path) -> Path:
    if reference["revision"] is not None:
        return _snapshot(reference["location"], reference["revision"])
    folder = (reference_path.parent / reference["location"]).resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder that {reference_path} points to is missing; run the base_model stage")
    return folder


def _snapshot(model: str, revision: str) -> Path:
    """Return the cached snapshot of a published model; never downloads."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise DataError(
            f"{model}@{revision}: not in the Hugging Face cache; run `hf download {model} --revision {revision}`"
        ) from None
