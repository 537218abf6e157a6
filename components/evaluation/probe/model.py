"""The attribute probe: a small CNN that reads attributes from a picture, for alignment where no VQA weights are available.

It is trained on real pictures only, and evaluated on held-out real ones (`accuracy.py`) before it measures generated ones. It has
one backbone and one head per attribute.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.training.evaluation_mode import evaluation_mode
from components.training.randomness import stream_seed

MISSING = -1  # label of an attribute that a picture does not state
FLAT_CHANNELS = 8  # of the map that is flattened for every attribute


class AttributeProbe(nn.Module):
    """Logits of every attribute from pictures (B, 3, H, W), uint8 or float in [0, 1], resized to `height` x `width`.

    attributes: name -> its possible values, in the order of the logits. Weights are drawn from `seed`.

    Each attribute reads the feature map in two ways. `attend`: a linear layer over features pooled by a few soft attention maps,
    from content plus a learned position, so that the colour of a bag is learned once for all places. `flat`: a linear layer over a
    narrow copy of the whole map, for shapes and widths, which pooling loses.
    """

    def __init__(
        self,
        attributes: Mapping[str, Sequence[str]],
        *,
        height: int = 64,
        width: int = 32,
        channels: int = 32,
        looks: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        for name, values in self.attributes.items():
            if len(set(values)) < 2 or len(set(values)) != len(values):
                raise DataError(f"attribute {name!r} has values {values}: a probe needs at least two different ones")
        if height % 8 or width % 8 or channels % 8:
            raise ParameterError(f"probe of {height}x{width} with {channels} channels: each must be a multiple of 8")
        self.height, self.width, self.channels, self.looks = height, width, channels, looks
        fine, coarse = 2 * channels, 3 * channels
        maps = len(self.attributes) * looks
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "attribute probe"))
            self.fine = nn.Sequential(
                nn.PixelUnshuffle(2), _convolution(12, channels), _convolution(channels, fine, 2), _Residual(fine)
            )
            self.coarse = nn.Sequential(_convolution(fine, coarse, 2), _Residual(coarse))
            self.context = nn.Conv2d(coarse, fine, 1)
            self.attend = nn.Conv2d(fine, maps, 1)
            self.position = nn.Parameter(0.5 * torch.randn(maps, height // 4, width // 4))
            self.narrow = nn.Conv2d(fine, FLAT_CHANNELS, 1)
            self.dropout = nn.Dropout(0.3)
            flat = FLAT_CHANNELS * (height // 4) * (width // 4)
            sizes = {name: len(values) for name, values in self.attributes.items()}
            self.looked = nn.ModuleDict({name: nn.Linear(looks * fine, size) for name, size in sizes.items()})
            self.flat = nn.ModuleDict({name: nn.Linear(flat, size) for name, size in sizes.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """name -> logits (B, number of values)."""
        unit = unit_pixels(pixels)
        if unit.shape[-2:] != (self.height, self.width):
            unit = functional.interpolate(unit, (self.height, self.width), mode="bilinear", antialias=True)
        fine = self.fine(unit * 2 - 1)  # (B, F, H/4, W/4)
        context = self.context(self.coarse(fine))  # (B, F, H/8, W/8)
        features = functional.relu(fine + functional.interpolate(context, scale_factor=2.0))
        weights = (self.attend(features) + self.position).flatten(2).softmax(-1)  # (B, A looks, P)
        pooled = weights @ features.flatten(2).transpose(1, 2)  # (B, A looks, F)
        looked = self.dropout(pooled.reshape(len(unit), len(self.attributes), -1))  # (B, A, looks F)
        flat = self.dropout(self.narrow(features).flatten(1))
        return {
            name: self.looked[name](looked[:, place]) + self.flat[name](flat)
            for place, name in enumerate(self.attributes)
        }

    def labels(self, attributes: Sequence[Mapping[str, str]]) -> Tensor:
        """Encode attributes of N pictures as (N, A) int64 indices into their values, `MISSING` where not stated.

        Raises `DataError` for a value that the probe does not know. Attributes that it does not know are ignored.
        """
        table = torch.full((len(attributes), len(self.attributes)), MISSING, dtype=torch.int64)
        for column, (name, values) in enumerate(self.attributes.items()):
            index = {value: place for place, value in enumerate(values)}
            for row, stated in enumerate(attributes):
                if name in stated:
                    if stated[name] not in index:
                        raise DataError(f"attribute {name} = {stated[name]!r}: the probe knows {', '.join(values)}")
                    table[row, column] = index[stated[name]]
        return table

    @torch.no_grad()
    def predict(self, pixels: Tensor, batch_size: int = 256) -> Tensor:
        """Return the most likely value of every attribute: (N, A) int64 on the CPU."""
        device = next(self.parameters()).device
        with evaluation_mode(self):
            parts = [
                torch.stack([logits.argmax(1) for logits in self(part.to(device)).values()], dim=1).cpu()
                for part in pixels.split(batch_size)
                if len(part)
            ]
        return torch.cat(parts) if parts else torch.empty((0, len(self.attributes)), dtype=torch.int64)

    def save(self, folder: Path) -> None:
        """Write probe.json and probe.safetensors, the same bytes for the same probe."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        # A list of pairs, because the order of attributes is part of the probe and JSON objects are sorted.
        config = {
            "attributes": [[name, list(values)] for name, values in self.attributes.items()],
            **{key: getattr(self, key) for key in ("height", "width", "channels", "looks")},
        }
        (folder / "probe.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "probe.safetensors")

    @classmethod
    def load_pinned(cls, folder: Path, sha256: str | None) -> "AttributeProbe":
        """Read a published probe whose `folder_digest` is `sha256`.

        Raises ParameterError where no digest is given, naming it, and DataError where there is no probe or another.
        """
        probe = cls.load(folder)
        found = folder_digest(folder)
        if sha256 is None:
            raise ParameterError(f"probe.sha256 is null: set it to {found}, the digest of {folder}")
        if sha256 != found:
            raise DataError(f"{folder}: its digest is {found}; expected is probe.sha256 = {sha256}")
        return probe

    @classmethod
    def load(cls, folder: Path) -> "AttributeProbe":
        """Read a saved probe, in eval mode. Raises `DataError` when there is none."""
        from safetensors.torch import load_file

        try:
            config = json.loads((folder / "probe.json").read_text())
            weights = load_file(folder / "probe.safetensors")
        except FileNotFoundError as error:
            raise DataError(f"{error.filename or folder}: no attribute probe there; run the probe stage") from None
        probe = cls({name: tuple(values) for name, values in config.pop("attributes")}, **config)
        probe.load_state_dict(weights)
        return probe.eval()


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the digests of a probe's two files, by which it is pinned."""
    parts = [file_digest(folder / name) for name in ("probe.json", "probe.safetensors")]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(8, outputs), nn.ReLU())


class _Residual(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm(self.second(self.first(x))))


def unit_pixels(pixels: Tensor) -> Tensor:
    """Convert uint8 in 0..255, or float in 0..1, to float32 in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
