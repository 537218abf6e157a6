"""Read a file of weights as people have them: safetensors, what `torch.save` wrote, or a TorchScript archive such as OpenAI's.

The format is found by the content, not by the name. Nothing in a file is run: of an unknown type only the name is read.
"""

import argparse
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from components.errors import DataError
from components.weight_files.torchscript import is_torchscript, read_torchscript

OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""What OpenAI's archives of CLIP hold beside its parameters."""

READING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError)
"""What torch, safetensors and transformers raise on a folder or file of weights that is damaged or of another kind."""

_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_STATES = ("model", "state_dict", "model_state_dict")
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer and not the file itself: run `git lfs pull`",
    b"<": "a web page and not weights: the download went wrong, get it again",
}
_FIX = "give a file of tensors alone, as torch.save(model.state_dict(), ...) writes it"
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def read_state(file: Path) -> dict[str, Tensor]:
    """Return the state dict of a file, unwrapped from a checkpoint, DistributedDataParallel and torch.compile.

    Raises DataError, in one line, for a file that is missing, cut off, of another kind, or of types that are not plain data.
    """
    content = _content(file)
    for _ in _STATES:  # one within another
        if isinstance(content, Mapping):
            content = next((content[key] for key in _STATES if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise DataError(f"{file}: holds no state dict, but {_kind(content)}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            where = f"neither at the top nor under {', '.join(_STATES)}"
            raise DataError(f"{file}: holds no state dict, {where}: {name} is {_kind(value)} and not a tensor")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise DataError(f"{file}: {name} is sparse, quantised or without values; only plain tensors are read")
    state = {_unwrapped(name): value for name, value in content.items()}
    if len(state) < len(content):
        raise DataError(f"{file}: some keys are there twice, with and without module.")
    return state


def require_finite(state: Mapping[str, Tensor], source: Any) -> None:
    """Raise DataError naming `source` for weights that are not numbers: a training that diverged, or a damaged file."""
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise DataError(
            f"{source}: {len(broken)} of {len(state)} tensors hold NaN or infinity, {broken[0]} among them; take another checkpoint"
        )


def load_exactly(
    module: nn.Module, state: Mapping[str, Tensor], source: Any, whose: str, optional: Collection[str] = ()
) -> None:
    """Load `state` into `module`. Raises DataError naming `source` and what does not fit; keys of `optional` may be missing."""
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state and name not in optional]
    wrong += [f"{name} is not a part of it" for name in state if name not in own]
    wrong += [
        f"{name} is {list(tensor.shape)}, not {list(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if wrong:
        raise DataError(f"{source}: does not fit {whose}: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
    module.load_state_dict(dict(state), strict=False)


def reason(error: BaseException) -> str:
    """One line of an error that a library raised on reading weights.

    Where torch refuses a pickled type it names the type, and leaves out its advice to load the file as code.
    """
    if isinstance(error, pickle.UnpicklingError):
        found = _GLOBAL.search(str(error))
        if found:
            return f"holds an object of the type {found[1]}, which could only be read by running its code"
        return "not a file of weights in a known format, or damaged"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:150]


def _content(file: Path) -> Any:
    """What the file holds, in its own form."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(32)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    if not head:
        raise DataError(f"{file}: is empty; get it again")
    for beginning, kind in _NOT_WEIGHTS.items():
        if head.lstrip().startswith(beginning):
            raise DataError(f"{file}: is {kind}")
    if head.startswith(b"PK") and not zipfile.is_zipfile(file):
        raise DataError(f"{file}: is cut off after {file.stat().st_size:,} bytes; get it again")
    try:
        if head[8:9] == b"{":
            from safetensors.torch import load_file

            return load_file(file)
        if is_torchscript(file):
            return read_torchscript(file)
        with torch.serialization.safe_globals(_plain_data()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises many kinds
        if isinstance(error, pickle.UnpicklingError):
            raise DataError(f"{file}: {reason(error)}; {_FIX}") from error
        raise DataError(
            f"{file}: not a readable file of weights, or damaged ({reason(error)}); get it again"
        ) from error


def _plain_data() -> list[Any]:
    """Types of plain data that training scripts save beside their tensors: numpy's numbers, parsed arguments."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, np.dtype, *numbers, *names]


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _kind(value: Any) -> str:
    return f"a value of the type {type(value).__name__}"
