"""The settings of token scores and of masking."""

from typing import Annotated, Literal

from pydantic import Field

from components.errors import ParameterError
from components.settings import AboveZero, Fraction, FromList, Positive, settings

Replacement = Literal["mask", "bert"]
Rule = Literal["sigmoid", "nam"]
Heads = Literal["model", "single"]
Timing = Literal["previous", "same-step"]
Normalisation = Literal["max", "signed", "rank", "quantile", "clip", "batch"]
ScoreName = Literal[
    "gradient",
    "released",
    "grad-eclip",
    "max-patch",
    "attention",
    "random",
    "leave-one-out",
    "path",
    "likelihood",
    "truth",
]


@settings
class MaskingConfig:
    """How tokens are chosen and what replaces them: see `masking.py` for the formulas.

    The limits are the paper's (figure 5); it gives neither slope nor threshold, these are the released code's. A
    replacement of "mask" always writes the mask token, as the paper says; "bert" does so in 80 % of cases, writes a
    random token in 10 % and leaves 10 % alone, as the released code does.

    What fraction of a batch the sigmoids mask depends on how its scores are spread. With a `target_noise_rate` the
    threshold, of both copies, is moved so that the noise copy's expected rate over the tokens with known scores is that
    one; rule "nam" takes its rate from it (`random_noise_rate` without) and masks the prediction copy at random.

    `unseen_score` is the score of every token of a caption without stored scores; with None it is masked at the random
    rates. `mask_first` masks the first token of a copy in which none was chosen. The released code has 0.85, which makes
    the noise copy of a first visit the caption but for its first word, and True.
    """

    noise_limit: Fraction = 0.2
    prediction_limit: Fraction = 0.3
    slope: AboveZero = 20.0
    threshold: float = 0.1
    random_noise_rate: Fraction = 0.15
    random_prediction_rate: Fraction = 0.15
    noise_replacement: Replacement = "mask"
    prediction_replacement: Replacement = "mask"
    rule: Rule = "sigmoid"
    target_noise_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    unseen_score: Fraction | None = None
    mask_first: bool = False

    def __post_init__(self) -> None:
        rate = self.target_noise_rate
        if rate is not None and self.rule == "sigmoid" and not rate < self.noise_limit:
            raise ParameterError(f"target_noise_rate = {rate}: must lie in (0, {self.noise_limit})")


@settings
class ScoringConfig:
    """A score of `scores/scoring.py` and its settings; one that a score does not have is ignored.

    layers: how many of the last text layers (None: two thirds). scales: widths of the key pooling. heads: "model", or
    "single" as in the released code. points: of the path. temperature: match against the other pictures of this rank's
    batch, so that the score depends on them (leave-one-out, path); None for the cosine alone. normalisation: None for
    the score's own.
    """

    name: ScoreName = "gradient"
    layers: Positive | None = None
    scales: Annotated[tuple[Positive, ...], FromList, Field(min_length=1)] = (1, 2)
    heads: Heads = "model"
    points: Positive = 4
    temperature: AboveZero | None = None
    normalisation: Normalisation | None = None
