"""Masking of a batch by scores: compute or look up the scores, draw the masks, and store scores for the next visit.

`mask` returns both copies of a batch; `observe` records what the decoder then predicted; `remember` stores the scores of a batch
that is not masked, in the contrastive warm-up, so that the first masked step has them. Timing of scores computed from the encoder:
"previous" masks with the scores of a caption's last visit, so that masks do not follow the weights of the same step, and uses the
random rates on a first visit; "same-step" uses the current scores. "likelihood" is always of earlier masked visits: how much better
than usual each token was predicted (nothing is predicted in the warm-up).
"""

from collections.abc import Mapping
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.errors import ParameterError
from components.gadms.config import MaskingConfig, ScoringConfig, Timing
from components.gadms.masking import DualMask, calibrated_threshold, dual_mask, maskable
from components.gadms.model import DualEncoder
from components.gadms.noise_detection import noise_diagnostics
from components.gadms.objectives import world_size
from components.gadms.score_memory import LikelihoodTable, ScoreTable, gather_rows
from components.gadms.scores.normalisation import normalise
from components.gadms.scores.scoring import ScoreInputs, normalisation_of, raw_scores


class CaptionScorer(nn.Module):
    """Scores and masks `captions` training captions. `scoring` None masks at random (the control).

    Its buffers are part of the task's checkpoint and the same on every rank. Bytes per caption of 77 tokens: 0 at random and for
    "same-step", 77 for "previous", 231 for "likelihood". `visits` float64 (2,) counts masked caption visits: those by a score (in
    part, where only some tokens have one), and all.
    """

    visits: Tensor

    def __init__(
        self,
        encoder: DualEncoder,
        captions: int,
        *,
        scoring: ScoringConfig | None,
        masking: MaskingConfig | None = None,
        timing: Timing = "previous",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if timing not in get_args(Timing):
            raise ParameterError(f"score timing {timing!r}: allowed are {', '.join(get_args(Timing))}")
        self.scoring, self.masking, self.timing, self.seed = scoring, masking or MaskingConfig(), timing, seed
        self.mask_id = encoder.tokenizer.mask_id
        length = encoder.clip.context_length
        self.scores = self.likelihoods = None
        if scoring is not None:
            self.register_buffer("visits", torch.zeros(2, dtype=torch.float64))
        if scoring is not None and scoring.name == "likelihood":
            self.likelihoods = LikelihoodTable(captions, encoder.clip.vocab_size, length)
        elif scoring is not None and scoring.name != "truth" and timing == "previous":
            self.scores = ScoreTable(captions, length)

    @torch.no_grad()
    def mask(
        self,
        encoder: DualEncoder,
        decoder: nn.Module | None,
        batch: Mapping[str, Any],
        image: Tensor,
        image_tokens: Tensor,
        step: int,
    ) -> tuple[DualMask, dict[str, Tensor]]:
        """Return both copies of this rank's captions, and scalars to log.

        batch: a RetrievalBatch (ids, caption_index; `wrong` for diagnostics); image (B, D), image_tokens (B, 1 + P, D). Collective:
        all ranks call it with the same B.
        """
        if self.likelihoods is not None and decoder is None:
            raise ParameterError("score 'likelihood' needs the masked-token decoder: mtp_weight must be above 0")
        ids = batch["ids"]
        valid = maskable(ids, self.mask_id)
        known, judged = self._scores(encoder, batch, image, image_tokens, valid, step)
        scored = known >= 0
        if self.scoring is not None and self.masking.unseen_score is not None:
            known = torch.where(scored, known, self.masking.unseen_score)
        ranks = world_size()
        threshold = None
        if self.masking.target_noise_rate is not None:
            threshold = calibrated_threshold(gather_rows(known), gather_rows(valid), self.masking)
        copies = dual_mask(
            ids,
            known,
            mask_id=self.mask_id,
            seed=self.seed,
            step=step,
            config=self.masking,
            rank=dist.get_rank() if ranks > 1 else 0,
            world_size=ranks,
            threshold=threshold,
        )
        scalars = {"noise_rate": copies.noise_rate, "prediction_rate": copies.prediction_rate}
        if self.scoring is not None:
            scalars["masked_by_score"] = self._count_visits(scored & valid, valid)
        if "wrong" in batch:
            scalars |= noise_diagnostics(judged, copies, batch["wrong"], valid, batch.get("facts"))
        return copies, scalars

    @property
    def masked_by_score(self) -> float | None:
        """The fraction of all masked caption visits so far that a score masked; None at random and before the first."""
        if self.scoring is None or not self.visits[1]:
            return None
        return (self.visits[0] / self.visits[1]).item()

    @torch.no_grad()
    def remember(
        self, encoder: DualEncoder, batch: Mapping[str, Any], image: Tensor, image_tokens: Tensor, step: int
    ) -> None:
        """Store the scores of a batch that is not masked, for the next visits of its captions. Arguments as `mask`; collective.

        Does nothing where no scores of earlier visits are used.
        """
        if self.scores is not None:
            valid = maskable(batch["ids"], self.mask_id)
            self.scores.update(batch["caption_index"], self._fresh(encoder, batch, image, image_tokens, valid, step))

    @torch.no_grad()
    def observe(self, batch: Mapping[str, Any], copies: DualMask, logits: Tensor) -> None:
        """Record how well the decoder predicted masked tokens, for "likelihood"; a no-op for other scores.

        logits (N, vocabulary) in the order of `labels`. Tokens that "bert" replacement leaves or replaces by others do not count,
        because the decoder does not see a mask there. Collective: all ranks call it with the same B.
        """
        if self.likelihoods is None:
            return
        chosen = copies.prediction_chosen
        targets = copies.labels[chosen]
        likelihood = torch.full(chosen.shape, torch.nan, device=chosen.device)
        likelihood[chosen] = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
        likelihood = likelihood.masked_fill(copies.prediction_ids != self.mask_id, torch.nan)
        self.likelihoods.observe(batch["caption_index"], batch["ids"], likelihood)

    def _scores(
        self,
        encoder: DualEncoder,
        batch: Mapping[str, Any],
        image: Tensor,
        image_tokens: Tensor,
        valid: Tensor,
        step: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Scores to mask by, and the current ones for diagnostics or None; both (B, T), -1 for unknown."""
        ids, index = batch["ids"], batch["caption_index"]
        if self.scoring is None:
            return torch.full(ids.shape, -1.0, device=ids.device), None
        if self.scoring.name == "truth":
            if "wrong" not in batch:
                raise ParameterError(
                    "score 'truth' needs captions whose wrong words are known, as those of drawn people"
                )
            scores = (~batch["wrong"]).float()
            return scores, scores
        if self.likelihoods is not None:
            raw, count = self.likelihoods.lookup(index)
            seen = valid & (count > 0)
            scores = self._normalised(raw, seen).masked_fill(~seen, -1)
            return scores, scores
        fresh = self._fresh(encoder, batch, image, image_tokens, valid, step)
        if self.scores is None:
            return fresh, fresh
        known = self.scores.lookup(index)
        self.scores.update(index, fresh)
        return known, fresh

    def _fresh(
        self,
        encoder: DualEncoder,
        batch: Mapping[str, Any],
        image: Tensor,
        image_tokens: Tensor,
        valid: Tensor,
        step: int,
    ) -> Tensor:
        """The score of every token by the encoder as it is now, (B, T)."""
        assert self.scoring is not None
        inputs = ScoreInputs(encoder, batch["ids"], image, image_tokens, self.scoring, self.seed, step)
        return self._normalised(raw_scores(inputs), valid)

    def _count_visits(self, scored: Tensor, valid: Tensor) -> Tensor:
        """Return the mean over the captions of the fraction of their tokens with a score; count those of all ranks."""
        tokens = valid.sum(-1)
        masked = scored.sum(-1).double() / tokens.clamp_min(1)
        each = gather_rows(torch.stack([masked, (tokens > 0).double()], dim=-1))
        self.visits += each.sum(0)
        return masked.sum() / (tokens > 0).sum().clamp_min(1)

    def _normalised(self, raw: Tensor, valid: Tensor) -> Tensor:
        assert self.scoring is not None
        rule, pool = normalisation_of(self.scoring), None
        if rule == "quantile":  # of the global batch, so that the number of ranks changes nothing
            pool = gather_rows(raw)[gather_rows(valid)]
        return normalise(raw, valid, rule, pool)
