"""Can generated pictures be told from real ones? A classifier is trained for that question alone."""

import torch
from torch import Tensor

from components.errors import DataError
from components.evaluation.probe.model import AttributeProbe
from components.evaluation.probe.training import ProbeTask, probe_batches
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit

STEPS, BATCH = 400, 64
ORIGINS = {"origin": ("real", "generated")}


def detection_accuracy(real: Tensor, generated: Tensor, *, seed: int = 0, steps: int = STEPS) -> float:
    """Return the percent of held-out pictures whose origin a small CNN tells: 50 where nothing tells them apart, 100 at worst.

    real, generated: uint8 (N, 3, H, W), H and W multiples of 8. The first half of each trains the classifier (the network and the
    training of the attribute probe) and the second is judged, so what belongs together, as pictures of one prompt, should lie in
    one half. Raises `DataError` where the numbers differ or are below 4.
    """
    if len(real) != len(generated) or len(real) < 4:
        raise DataError(f"{len(real)} real and {len(generated)} generated pictures: give as many of each, at least 4")
    half, (height, width) = len(real) // 2, real.shape[-2:]
    classifier = AttributeProbe(ORIGINS, height=height, width=width, seed=seed)

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        pixels = torch.cat([real[rows], generated[rows]])
        return pixels, (torch.arange(len(pixels)) >= len(pixels) // 2).long()[:, None]

    pixels, labels = part(slice(0, half))
    config = LoopConfig(
        steps=steps, learning_rate=0.004, warmup_steps=min(20, steps - 1), weight_decay=0.01, report_every=steps
    )
    batches = probe_batches(pixels, labels, batch_size=min(BATCH, len(pixels)), seed=seed)
    fit(ProbeTask(classifier, seed=seed, noise=0.0), batches, config, LocalContext(seed))
    pixels, labels = part(slice(half, None))
    return 100 * float((classifier.predict(pixels) == labels).double().mean())
