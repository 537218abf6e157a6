"""Scores of caption tokens by name: how much each token serves the match of its caption with its picture, in [0, 1].

`SCORES` is the table: what computes a score, and how its raw values are brought to [0, 1] (`normalisation.py`). A new score is a
file with a function that returns raw values (B, T), larger for a token that serves the match more, and a line in the table (and its
name in `ScoreName`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from components.errors import ParameterError
from components.gadms.config import Heads, Normalisation, ScoreName, ScoringConfig
from components.gadms.masking import maskable
from components.gadms.model import DualEncoder
from components.gadms.scores.controls import attention_only, grad_eclip, max_patch, random_values
from components.gadms.scores.gradient import EndTokenMaps, end_token_maps, scores_of
from components.gadms.scores.leave_one_out import leave_one_out, path
from components.gadms.scores.normalisation import normalise
from components.gadms.scores.released import released_scores


@dataclass(frozen=True)
class ScoreInputs:
    """The inputs of every score: ids (B, T) raw captions; image (B, D) and image_tokens (B, 1 + P, D) of their pictures, constants.

    `seed` and `step` name the draws of "random".
    """

    encoder: DualEncoder
    ids: Tensor
    image: Tensor
    image_tokens: Tensor
    config: ScoringConfig
    seed: int = 0
    step: int = 0

    def maps(self, heads: Heads | None = None, padding: bool = False) -> EndTokenMaps:
        """The end token's gradients and attention, which several scores are computed from."""
        layers, heads = self.config.layers, heads or self.config.heads
        return end_token_maps(self.encoder, self.ids, self.image, layers=layers, heads=heads, padding=padding)


@dataclass(frozen=True)
class Score:
    """A line of the table. raw: computes signed values (B, up to T), meaningless outside the caption's tokens."""

    raw: Callable[[ScoreInputs], Tensor]
    normalisation: Normalisation = "max"


def _unavailable(reason: str) -> Callable[[ScoreInputs], Tensor]:
    """A score that no function of the encoder computes: `CaptionScorer` has it while training."""

    def refuse(inputs: ScoreInputs) -> Tensor:
        raise ParameterError(f"score {inputs.config.name!r} {reason}; it cannot be computed here")

    return refuse


SCORES: dict[ScoreName, Score] = {
    # The paper's.
    "gradient": Score(lambda given: scores_of(given.maps(), given.config.scales)),
    # The paper's as its released code computes it.
    "released": Score(lambda given: released_scores(given.maps("single", padding=True), given.config.scales), "batch"),
    # To compare with.
    "grad-eclip": Score(lambda given: grad_eclip(given.maps())),
    "attention": Score(lambda given: attention_only(given.maps())),
    "max-patch": Score(lambda given: max_patch(given.encoder, given.ids, given.image_tokens), "clip"),
    "random": Score(lambda given: random_values(given.ids, given.seed, given.step), "clip"),
    # What the match loses without the token: exactly, one text pass per token; to first order, one pass per point.
    "leave-one-out": Score(
        lambda given: leave_one_out(given.encoder, given.ids, given.image, temperature=given.config.temperature),
        "signed",
    ),
    "path": Score(
        lambda given: path(
            given.encoder, given.ids, given.image, points=given.config.points, temperature=given.config.temperature
        ),
        "signed",
    ),
    # How well the masked-token decoder predicts it.
    "likelihood": Score(_unavailable("is observed while a decoder trains"), "quantile"),
    # 0 for words known to be wrong, else 1: no score, but what a perfect one would give (drawn people).
    "truth": Score(_unavailable("is read from captions whose wrong words are known"), "clip"),
}
"""Normalisations keep the sign, except of scores that were published without it."""


def normalisation_of(config: ScoringConfig) -> Normalisation:
    """The configured normalisation, by default that of the score."""
    return config.normalisation or SCORES[config.name].normalisation


def raw_scores(inputs: ScoreInputs) -> Tensor:
    """Compute a score before normalisation, (B, T): signed where the score is; meaningless outside the caption's tokens.

    In the precision of the weights, also under autocast, whose products would move a score by up to a hundredth.
    """
    with torch.autocast(inputs.ids.device.type, enabled=False):
        raw = SCORES[inputs.config.name].raw(inputs)
    return F.pad(raw, (0, inputs.ids.shape[1] - raw.shape[1]))


def token_scores(
    encoder: DualEncoder,
    ids: Tensor,
    image: Tensor,
    image_tokens: Tensor,
    config: ScoringConfig | None = None,
    *,
    seed: int = 0,
    step: int = 0,
) -> Tensor:
    """Compute a score by name: fp32 (B, T) in [0, 1], 0 outside the caption's tokens. Arguments as `ScoreInputs`.

    In fp32 also under autocast, in train and eval mode, under no_grad, inside DDP; leaves no gradient and no graph behind.
    """
    inputs = ScoreInputs(encoder, ids, image, image_tokens, config or ScoringConfig(), seed, step)
    return _normalised(inputs).float()


def gradient_attention_scores(
    encoder: DualEncoder,
    ids: Tensor,
    image: Tensor,
    *,
    layers: int | None = None,
    scales: tuple[int, ...] = (1, 2),
    heads: Heads = "model",
) -> Tensor:
    """Compute the paper's score as training does: (B, T) in [0, 1], in the precision of the weights, 0 outside the captions.

    The short form of `token_scores` with `ScoringConfig("gradient")`; settings and arguments are described there.
    """
    config = ScoringConfig("gradient", layers, tuple(scales), heads)
    return _normalised(ScoreInputs(encoder, ids, image, image[:, None], config))  # this score reads no image tokens


def _normalised(inputs: ScoreInputs) -> Tensor:
    valid = maskable(inputs.ids, inputs.encoder.tokenizer.mask_id)
    return normalise(raw_scores(inputs), valid, normalisation_of(inputs.config))
