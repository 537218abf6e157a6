"""Tables of caption tokens kept between visits: the latest score, or the likelihood of the token so far.

Scores of a caption are computed when it is in a batch and used at its next visit. The released code keeps them in a list per rank:
with eight ranks one visit in eight finds them, and a resumed run has none. Here they are buffers of the task, the same on all ranks
and part of the checkpoint. Everything is counted in integers, so that the order of the ranks changes nothing.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

UNKNOWN = 255
NATS = 16  # a log-likelihood is kept in sixteenths of a nat,
WORST = 16  # and no lower than -16


class ScoreTable(nn.Module):
    """The latest score s of every token as uint8 (captions, T): round(254 s), 255 for unknown. 77 bytes per caption."""

    table: Tensor

    def __init__(self, captions: int, context_length: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.full((captions, context_length), UNKNOWN, dtype=torch.uint8))

    def lookup(self, index: Tensor) -> Tensor:
        """Return scores fp32 (B, T) of the captions `index` (B,); -1 where unknown."""
        stored = self.table[index]
        return torch.where(stored == UNKNOWN, -1.0, stored.float() / 254)

    @torch.no_grad()
    def update(self, index: Tensor, scores: Tensor) -> None:
        """Store scores (B, T) in [0, 1] of the captions `index` (B,) of all ranks.

        Collective: all ranks call it with the same B and then hold the same table. Of a caption that is in the batch twice, at the
        border of two epochs, the later row counts: where an assignment names a row twice, a GPU writes either.
        """
        coded = gather_rows((scores.clamp(0, 1) * 254).round().to(torch.uint8))
        rows, place = gather_rows(index).unique(return_inverse=True)
        last = torch.zeros_like(rows).scatter_reduce_(0, place, torch.arange(len(place), device=rows.device), "amax")
        self.table[rows] = coded[last]


class LikelihoodTable(nn.Module):
    """Running mean, per caption token, of how much better than usual it was predicted when masked.

    *Usual* is the running mean log-likelihood of that token over all captions at that time; without it the value would follow word
    frequency and the progress of training. An int16 sum and a uint8 count take 3 bytes per token, 231 per caption (2.3 GB for ten
    million); a vocabulary entry takes 16 bytes. After `window` observations sum and count are halved, so that old observations, of
    a weaker decoder, fade.
    """

    total: Tensor
    count: Tensor
    usual_total: Tensor
    usual_count: Tensor

    def __init__(self, captions: int, vocab_size: int, context_length: int, *, window: int = 16) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("total", torch.zeros(captions, context_length, dtype=torch.int16))
        self.register_buffer("count", torch.zeros(captions, context_length, dtype=torch.uint8))
        self.register_buffer("usual_total", torch.zeros(vocab_size, dtype=torch.float64))
        self.register_buffer("usual_count", torch.zeros(vocab_size, dtype=torch.float64))

    def lookup(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mean gain in nats, observations), fp32 and int64 (B, T); the gain is 0 without observations."""
        count = self.count[index].long()
        return self.total[index].float() / NATS / count.clamp_min(1), count

    @torch.no_grad()
    def observe(self, index: Tensor, ids: Tensor, likelihood: Tensor) -> None:
        """Add log-likelihoods (B, T) of the tokens ids (B, T) of the captions `index` (B,) of all ranks; NaN where not predicted.

        Collective: all ranks call it with the same B and then hold the same table.
        """
        index, ids, likelihood = gather_rows(index), gather_rows(ids), gather_rows(likelihood)
        seen = ~likelihood.isnan()
        coded = (likelihood.clamp(-WORST, 0).nan_to_num() * NATS).round().long()  # (B, T) -256 to 0
        coded = coded.masked_fill(~seen, 0)
        self._update_usual(ids[seen], coded[seen])
        usual = (self.usual_total / self.usual_count.clamp_min(1e-9)).round().long()[ids]
        gain = (coded - usual).masked_fill(~seen, 0)
        # A caption may be in a batch twice, at the border of two epochs: its rows are added first.
        rows, place = index.unique(return_inverse=True)
        gains = torch.zeros(len(rows), ids.shape[1], dtype=torch.long, device=ids.device).index_add_(0, place, gain)
        times = torch.zeros_like(gains).index_add_(0, place, seen.long())
        total, count = self.total[rows].long() + gains, self.count[rows].long() + times
        full = count >= self.window
        self.total[rows] = torch.where(full, total.div(2, rounding_mode="trunc"), total).to(torch.int16)
        self.count[rows] = torch.where(full, count // 2, count).to(torch.uint8)

    def _update_usual(self, tokens: Tensor, coded: Tensor) -> None:
        """Update the mean of each token over about its last 100 observations, by halving as above; sums of integers are exact."""
        total = torch.zeros(len(self.usual_total), dtype=torch.long, device=tokens.device)
        times = torch.zeros_like(total)
        total.index_add_(0, tokens, coded)
        times.index_add_(0, tokens, torch.ones_like(coded))
        self.usual_total += total
        self.usual_count += times
        fade = torch.where(self.usual_count > 200, 0.5, 1.0)
        self.usual_total *= fade
        self.usual_count *= fade


def gather_rows(tensor: Tensor) -> Tensor:
    """Gather rows of all ranks in rank order, without gradient; every rank has the same number. No-op without a process group."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
