"""The ruler for alignment where no VQA weights are given: a small CNN that reads attributes off a picture.

It is trained on real pictures only and judged on held-out real ones (`evaluate_probe`) before it may judge generated
ones. One backbone, one head an attribute; attributes that a picture does not state are masked out of loss and score.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from components.errors import DataError, ParameterError
from components.training.randomness import generator, rank_part, stream_seed
from components.training.task import PerSampleTask

MISSING = -1  # label of an attribute that a picture does not state
FLAT_CHANNELS = 8  # of the map that every attribute reads whole


class AttributeProbe(nn.Module):
    """Logits of every attribute from pictures (B, 3, H, W), uint8 or float in [0, 1], resized to `height` x `width`.

    attributes: name -> its possible values, in the order of the logits. Weights are drawn from `seed`.

    Each attribute looks at the feature map in two ways. `attend`: a few soft attention maps, content plus a learned
    position, whose pooled features are read by a linear layer: a bag's colour is learned once, wherever it hangs.
    `flat`: a linear layer over a narrow copy of the whole map: shapes and widths, which pooling would lose.
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
        """Stated attributes of N pictures as (N, A) int64 indices into their values, `MISSING` where not stated.

        Raises `DataError` for a value the probe does not know. Attributes it does not know are ignored.
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
        """The likeliest value of every attribute: (N, A) int64 on the CPU."""
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        parts = [
            torch.stack([logits.argmax(1) for logits in self(part.to(device)).values()], dim=1).cpu()
            for part in pixels.split(batch_size)
            if len(part)
        ]
        self.train(was_training)
        return torch.cat(parts) if parts else torch.empty((0, len(self.attributes)), dtype=torch.int64)

    def save(self, folder: Path) -> None:
        """Write probe.json and probe.safetensors, the same bytes for the same probe."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        # A list of pairs: the order of attributes is part of the probe, and JSON objects are sorted when written again.
        config = {
            "attributes": [[name, list(values)] for name, values in self.attributes.items()],
            **{key: getattr(self, key) for key in ("height", "width", "channels", "looks")},
        }
        (folder / "probe.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "probe.safetensors")

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


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(8, outputs), nn.ReLU())


class _Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm(self.second(self.first(x))))


def unit_pixels(pixels: Tensor) -> Tensor:
    """uint8 in 0..255, or float in 0..1, as float32 in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


class ProbeTask(PerSampleTask):
    """Cross-entropy of every stated attribute, averaged over attributes.

    Batch: `{"pixels": (B, 3, H, W), "labels": (B, A) int64}`, `MISSING` labels add nothing to loss or gradient.
    Pictures are shifted by up to `jitter` pixels (edges repeated) and get Gaussian noise of deviation up to `noise` (of
    1), so that the probe reads a generated picture, which is never quite as crisp, as it reads a real one. With
    `mirrored`, half of them are flipped left to right; it names the values that this changes, as in
    `{"view": {"left": "right", "right": "left"}}`, and must be given (empty if nothing changes) for any to be flipped.

    Scalars: loss, accuracy (over stated attributes).
    """

    _mirror: Tensor

    def __init__(
        self,
        probe: AttributeProbe,
        *,
        seed: int,
        jitter: int = 1,
        noise: float = 0.02,
        mirrored: Mapping[str, Mapping[str, str]] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.probe = probe
        self.seed = seed
        self.jitter = jitter
        self.noise = noise
        self.flip = mirrored is not None
        self.register_buffer("_mirror", _mirror_table(probe.attributes, mirrored or {}), persistent=False)
        self.rank = rank
        self.world_size = world_size

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        device = next(self.probe.parameters()).device
        pixels, labels = self._augment(batch["pixels"].to(device), batch["labels"].to(device), step)
        logits = self.probe(pixels)
        losses, right, stated = [], labels.new_zeros(()), (labels != MISSING).sum()
        for column, values in enumerate(logits.values()):
            target = labels[:, column]
            known = (target != MISSING).sum()
            total = functional.cross_entropy(values, target, ignore_index=MISSING, reduction="sum")
            losses.append(total / known.clamp_min(1))
            right = right + (values.argmax(1) == target).sum()
        return {"loss": torch.stack(losses).mean(), "accuracy": right / stated.clamp_min(1)}

    def _augment(self, pixels: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to float in [0, 1], changed at random, and the labels (B, A) that are then true.

        Drawn for the global batch, this rank's part taken.
        """
        unit = unit_pixels(pixels)
        part, (height, width) = len(unit), unit.shape[-2:]
        total = part * self.world_size
        source = generator(self.seed, "augmentation", step)

        def own(drawn: Tensor) -> Tensor:
            return rank_part(drawn, self.rank, self.world_size).to(unit.device)

        shifts = own(torch.randint(-self.jitter, self.jitter + 1, (total, 2), generator=source))
        strength = own(torch.rand(total, generator=source)) * self.noise
        flipped = (own(torch.rand(total, generator=source)) < 0.5) & self.flip
        rows = (torch.arange(height, device=unit.device) + shifts[:, :1]).clamp(0, height - 1)  # (B, H)
        columns = (torch.arange(width, device=unit.device) + shifts[:, 1:]).clamp(0, width - 1)  # (B, W)
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
        each = torch.arange(part, device=unit.device)[:, None, None]
        moved = unit.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
        grain = own(torch.randn((total, *unit.shape[1:]), generator=source))
        # MISSING is -1, and so indexes the table's last column, which holds MISSING.
        swapped = self._mirror[torch.arange(labels.shape[1], device=labels.device), labels]
        return (moved + strength[:, None, None, None] * grain).clamp(0, 1), torch.where(
            flipped[:, None], swapped, labels
        )


def _mirror_table(attributes: Mapping[str, Sequence[str]], mirrored: Mapping[str, Mapping[str, str]]) -> Tensor:
    """(A, most values + 1) int64: the label of each attribute's values after a flip; the last column is `MISSING`."""
    if unknown := set(mirrored) - set(attributes):
        raise ParameterError(f"mirrored: unknown attributes {sorted(unknown)}; the probe knows {', '.join(attributes)}")
    most = max(len(values) for values in attributes.values())
    table = torch.full((len(attributes), most + 1), MISSING, dtype=torch.int64)
    for row, (name, values) in enumerate(attributes.items()):
        swap = mirrored.get(name, {})
        for column, value in enumerate(values):
            table[row, column] = list(values).index(swap.get(value, value))
    return table


def probe_batches(
    pixels: Tensor, labels: Tensor, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> Callable[[int], dict[str, Tensor]]:
    """Batches for `ProbeTask`: epochs over (N, 3, H, W) and (N, A), shuffled anew each time. `batch_size` is global."""

    def batch(step: int) -> dict[str, Tensor]:
        positions = rank_part(torch.arange(step * batch_size, (step + 1) * batch_size), rank, world_size)
        orders = {
            int(epoch): torch.randperm(len(pixels), generator=generator(seed, "probe epoch", int(epoch)))
            for epoch in (positions // len(pixels)).unique()
        }
        chosen = torch.stack([orders[int(p) // len(pixels)][int(p) % len(pixels)] for p in positions])
        return {"pixels": pixels[chosen], "labels": labels[chosen]}

    return batch


def evaluate_probe(probe: AttributeProbe, pixels: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """How far the probe can be trusted, on held-out real pictures: name -> percentages and the number of pictures.

    balanced_accuracy: mean recall over the values that occur; accuracy; majority: what always answering the commonest
    value would get. An attribute no picture states is left out.
    """
    predicted = probe.predict(pixels).numpy()
    table: dict[str, dict[str, float]] = {}
    for column, name in enumerate(probe.attributes):
        truth = labels[:, column].numpy()
        stated = truth != MISSING
        if not stated.any():
            continue
        table[name] = {
            "balanced_accuracy": 100 * balanced_accuracy(truth[stated], predicted[stated, column]),
            "accuracy": 100 * float((truth[stated] == predicted[stated, column]).mean()),
            "majority": 100 * float(np.bincount(truth[stated]).max() / stated.sum()),
            "pictures": int(stated.sum()),
        }
    return table


def balanced_accuracy(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Mean over the classes in `truth` (N,) of the fraction of their members that `predicted` (N,) gets right."""
    classes, class_of = np.unique(truth, return_inverse=True)
    right = np.bincount(class_of, weights=(truth == predicted).astype(np.float64), minlength=len(classes))
    return float((right / np.bincount(class_of)).mean())
