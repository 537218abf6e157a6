"""The newest score of every caption token, between visits.

Scores of a caption are computed when it is in a batch and used when it comes again. The released code keeps them in
each rank's own list: with eight ranks one visit in eight finds them, and a resumed run starts from nothing. Here they
are one buffer of the task, the same on all ranks and part of the checkpoint.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

UNKNOWN = 255


class ScoreTable(nn.Module):
    """uint8 (captions, T): a score s as round(254 s), 255 for unknown. One byte a token; the sigmoid of masking needs
    no more.
    """

    table: Tensor

    def __init__(self, captions: int, context_length: int = 77) -> None:
        super().__init__()
        self.register_buffer("table", torch.full((captions, context_length), UNKNOWN, dtype=torch.uint8))

    def lookup(self, index: Tensor) -> Tensor:
        """Scores fp32 (B, T) of the captions `index` (B,); -1 throughout for a caption never scored."""
        stored = self.table[index]
        return torch.where(stored == UNKNOWN, -1.0, stored.float() / 254)

    @torch.no_grad()
    def update(self, index: Tensor, scores: Tensor) -> None:
        """Store scores (B, T) in [0, 1] of the captions `index` (B,), and those that the other ranks bring.

        All ranks must call it together with the same B; afterwards all hold the same table.
        """
        coded = (scores.clamp(0, 1) * 254).round().to(torch.uint8)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            index, coded = _gather(index), _gather(coded)
        self.table[index] = coded


def _gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
