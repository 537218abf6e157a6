"""Training of the attribute probe: the task and its batches."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from components.errors import ParameterError
from components.evaluation.probe.model import MISSING, AttributeProbe, unit_pixels
from components.training.randomness import ShuffledEpochs, generator, rank_part
from components.training.task import PerSampleTask


class ProbeTask(PerSampleTask):
    """Cross-entropy of every stated attribute, averaged over attributes.

    Batch: `{"pixels": (B, 3, H, W), "labels": (B, A) int64, "stated": (A,) int64}`. `MISSING` labels add nothing to loss or
    gradient; `stated` counts the others in the global batch, as means are over the labels of all ranks. Pictures shift by up to
    `jitter` pixels (edges repeated) and get Gaussian noise of deviation up to `noise` (of 1), so that the probe generalises to
    generated pictures, which are less sharp. With `mirrored`, half of them are flipped left to right; it lists the values that a
    flip changes, as in `{"view": {"left": "right", "right": "left"}}`, and may be empty.

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
        stated = batch["stated"].to(device)
        logits = self.probe(pixels)
        losses, right = [], labels.new_zeros(())
        for column, values in enumerate(logits.values()):
            target = labels[:, column]
            total = functional.cross_entropy(values, target, ignore_index=MISSING, reduction="sum")
            losses.append(self.world_size * total / stated[column].clamp_min(1))  # gradients are averaged over ranks
            right = right + (values.argmax(1) == target).sum()
        return {"loss": torch.stack(losses).mean(), "accuracy": self.world_size * right / stated.sum().clamp_min(1)}

    def _augment(self, pixels: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Augment (B, 3, H, W) to float in [0, 1]; return it with the labels (B, A) after the flip. Drawn for the global batch."""
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
        # MISSING is -1 and indexes the last column of the table, which holds MISSING.
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
    """Return batches for `ProbeTask` by step: shuffled epochs over (N, 3, H, W) and (N, A). `batch_size` is global."""
    epochs = ShuffledEpochs(len(pixels), seed, "probe epoch")

    def batch(step: int) -> dict[str, Tensor]:
        rows = epochs.rows(torch.arange(step * batch_size, (step + 1) * batch_size))
        chosen = rank_part(rows, rank, world_size)
        return {"pixels": pixels[chosen], "labels": labels[chosen], "stated": (labels[rows] != MISSING).sum(0)}

    return batch
