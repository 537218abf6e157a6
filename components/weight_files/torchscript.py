"""The tensors of a TorchScript archive, such as OpenAI's CLIP, without running it.

`torch.jit.load` builds the archive's modules from the code in it. Here only its pickle of attributes is read, in which a module is
an object with a dictionary of tensors and modules; no type is imported, and other values are left out. The name of a tensor is the
path of its attributes, as in `state_dict()`. Attributes that are no parameters are among them.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


def is_torchscript(file: Path) -> bool:
    """Whether the file is a TorchScript archive (and not one of `torch.save`)."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """Return the tensors by name. Raises pickle.UnpicklingError and other errors where the archive is damaged."""
    with zipfile.ZipFile(file) as archive:
        content = next(name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
        return dict(_tensors(_Unpickler(archive, content).load()))


class _Unknown:
    """Stands for any type of the archive: keeps an object's state."""

    def __new__(cls, *arguments: Any) -> "_Unknown":
        made = super().__new__(cls)
        made.state = {}
        return made

    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Makes tensors and dictionaries, and `_Unknown` of everything else."""

    def __init__(self, archive: zipfile.ZipFile, content: str) -> None:
        super().__init__(io.BytesIO(archive.read(content)))
        self.archive, self.folder = archive, content.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return _STORAGES.get(name, _Unknown) if module == "torch" else _Unknown

    def persistent_load(self, saved: Any) -> Tensor:
        """A storage, as a tensor with one dimension."""
        _, dtype, key, _, _ = saved
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"storage {key} is of an unknown type")
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)  # raises RuntimeError for places outside the storage


def _tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    attributes = module.state if isinstance(module, _Unknown) and isinstance(module.state, dict) else {}
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _tensors(value, f"{prefix}{name}.")
