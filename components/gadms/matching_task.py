"""The training task with another matching loss: which of loss and masks makes a difference is a question of studies.

In methods.py the loss belongs to the method: everything that masks is matched by SDM. Here any masking meets any loss.
"""

from typing import Any

from torch import Tensor

from components.gadms.methods import Matching, RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.tasks import RetrievalBatch, RetrievalTask


class MatchingTask(RetrievalTask):
    """`RetrievalTask` with `matching` in place of SDM, at the same temperature, on the same caption; None leaves the method's own.

    The contrastive warm-up stays. The loss is logged under its own name.
    """

    def __init__(
        self, encoder: DualEncoder, config: RetrievalConfig, *, matching: Matching | None, **options: Any
    ) -> None:
        super().__init__(encoder, config, **options)
        self.matching = matching

    def _matching_loss(
        self, matching: Matching, image: Tensor, text: Tensor, identities: Tensor, temperature: float
    ) -> Tensor:
        replaced = self.matching if self.matching and matching == "sdm" else matching
        return super()._matching_loss(replaced, image, text, identities, temperature)

    def forward(self, batch: RetrievalBatch, step: int) -> dict[str, Tensor]:
        """Scalars, "loss" among them. The other losses are logged before weighting."""
        scalars = super().forward(batch, step)
        if self.matching and "sdm" in scalars:
            scalars[self.matching] = scalars.pop("sdm")
        return scalars
