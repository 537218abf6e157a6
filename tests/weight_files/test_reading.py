"""Files of weights as people have them: what is read, and what is refused and never run."""

import argparse
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchscript_archives import write_archive

from components.errors import DataError
from components.weight_files.reading import load_exactly, read_state, reason, require_finite

STATE = {
    "visual.proj": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "blocks.0.attn.weight": torch.arange(6.0).reshape(2, 3).half(),
    "vocab_size": torch.tensor(77),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")


def wrapped(prefix, every=1):
    return {f"{prefix}{name}" if i % every == 0 else name: value for i, (name, value) in enumerate(STATE.items())}


READ = {
    "a state dict": lambda file: torch.save(STATE, file),
    "of an old torch": lambda file: torch.save(STATE, file, _use_new_zipfile_serialization=False),
    "safetensors by another name": lambda file: save_file(STATE, file),
    "TorchScript": lambda file: write_archive(file, STATE, mask=False),
    "of several GPUs": lambda file: torch.save({"model": wrapped("module.")}, file),
    "of several GPUs, some keys": lambda file: torch.save({"state_dict": wrapped("module.", every=2)}, file),
    "compiled": lambda file: torch.save({"epoch": 3, "model_state_dict": wrapped("_orig_mod.")}, file),
    "within two": lambda file: torch.save({"model": {"state_dict": STATE}}, file),
    "with a numpy number": lambda file: torch.save({"model": STATE, "best": np.float32(73.4), "n": np.int64(3)}, file),
    "with arguments": lambda file: torch.save({"model": STATE, "args": argparse.Namespace(lr=[1e-5])}, file),
}


@pytest.mark.parametrize("kind", READ)
def test_the_tensors_of_a_file_are_read_whatever_wrote_them(kind, tmp_path):
    file = tmp_path / "best.pth"
    READ[kind](file)
    found = read_state(file)
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in STATE.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_an_archive_of_torchscript_has_the_tensors_that_torch_finds_in_it(tmp_path):
    view = torch.arange(24.0).reshape(4, 6).T[1:5:2]  # not contiguous, and not at its storage's beginning
    write_archive(tmp_path / "m.pt", {"a.b": view, "a.c": view[:1], "d": torch.zeros(0, 3), "e.0.f": torch.ones(2) > 0})
    expected = torch.jit.load(str(tmp_path / "m.pt")).state_dict()
    found = read_state(tmp_path / "m.pt")
    assert torch.equal(
        found.pop("attn_mask"), torch.full((2, 2), -torch.inf).triu(1)
    )  # an attribute that is no parameter
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class Trap:
    """Read as code it would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def trapped_archive(file):
    """An archive of TorchScript with a trap among its attributes."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"weights": Trap(file.parent / "sprung")}, protocol=2))
        archive.writestr("m/constants.pkl", pickle.dumps((), protocol=2))


def cut(write, share):
    def written(file):
        write(file)
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    return written


REFUSED = {
    "nothing": (lambda file: file.write_bytes(b""), "is empty"),
    "a pointer": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "run `git lfs pull`"),
    "a page": (lambda file: file.write_text("\n<!DOCTYPE html><html>"), "is a web page and not weights"),
    "text": (lambda file: file.write_text("no weights"), "not a file of weights in a known format"),
    "cut off": (cut(READ["a state dict"], 0.6), r"is cut off after [\d,]+ bytes"),
    "an old one cut off": (cut(READ["of an old torch"], 0.9), "not a readable file of weights, or damaged"),
    "safetensors cut off": (
        cut(READ["safetensors by another name"], 0.9),
        "not a readable file of weights, or damaged",
    ),
    "TorchScript cut off": (cut(READ["TorchScript"], 0.7), "is cut off after"),
    "a module": (
        lambda file: torch.save(torch.nn.Linear(2, 2), file),
        r"of the type torch.nn.modules.linear.Linear, which",
    ),
    "an old module": (
        lambda file: torch.save(torch.nn.Linear(2, 2), file, _use_new_zipfile_serialization=False),
        "of the type torch.nn.modules.linear.Linear, which",
    ),
    "a trap": (lambda file: torch.save({"model": Trap(file.parent / "sprung")}, file), "of the type io.open, which"),
    "a trapped archive": (trapped_archive, "holds no state dict, but a value of the type dict|not a"),
    "no state": (lambda file: torch.save({"epoch": 3}, file), "epoch is a value of the type int and not a tensor"),
    "a list": (lambda file: torch.save([STATE], file), "holds no state dict, but a value of the type list"),
    "twice": (lambda file: torch.save(STATE | wrapped("module."), file), "with and without module."),
    "sparse": (lambda file: torch.save({"a": torch.eye(2).to_sparse()}, file), "a is sparse, quantised or without"),
    "no values": (lambda file: torch.save({"a": torch.ones(2, device="meta")}, file), "or without values"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused_in_one_line_and_never_run(kind, tmp_path):
    write, message = REFUSED[kind]
    write(tmp_path / "best.pth")
    with pytest.raises(DataError, match=message) as caught:
        read_state(tmp_path / "best.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'best.pth'}: ")
    assert not re.search(r"\n|weights_only|trust|allow|safe_globals|\x1b", str(caught.value))
    assert not (tmp_path / "sprung").exists()


def test_what_a_library_says_of_a_file_is_one_line():
    assert reason(OSError("no\nsuch")) == "no"
    assert reason(ValueError()) == "ValueError"
    assert reason(pickle.UnpicklingError("Re-run with trust")) == "not a file of weights in a known format, or damaged"


def test_a_missing_file_and_weights_that_are_not_numbers_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.pth: cannot be read"):
        read_state(tmp_path / "none.pth")
    require_finite(STATE, "best.pth")
    for value in (torch.nan, -torch.inf):
        with pytest.raises(DataError, match=r"best\.pth: 1 of 4 tensors hold NaN or infinity, broken among them"):
            require_finite({**STATE, "broken": torch.tensor([0.0, value])}, "best.pth")


def test_a_state_fits_a_module_exactly_or_what_does_not_is_named():
    module = torch.nn.Linear(2, 3)
    state = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    load_exactly(module, state, "f", "it")
    assert (module.weight == 1).all()
    load_exactly(module, {"weight": torch.zeros(3, 2)}, "f", "it", optional={"bias"})
    assert (module.weight == 0).all()
    wrong = {"weight": torch.ones(2, 2), "other": torch.ones(1)}
    with pytest.raises(
        DataError, match=r"^f: does not fit it: bias is missing; other is not a part of it; weight is \[2, 2\]"
    ):
        load_exactly(module, wrong, "f", "it")
