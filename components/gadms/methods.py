"""The compared methods, one per line of a table.

| method      | matching loss | on which caption | what is masked in it             | other losses     | from |
|-------------|---------------|------------------|----------------------------------|------------------|------|
| gadms       | SDM           | noise copy       | tokens the score takes for noise | MTP 0.4          | GA-DMS, arXiv 2509.09118 |
| random      | SDM           | noise copy       | anything, 15 %                   | MTP 0.4          | the control of gadms |
| unmasked    | SDM           | the caption      | nothing; MTP masks 15 % at random | MTP 0.4         | the other control |
| nam         | SDM           | noise copy       | tokens unlike any patch, 15 %    |                  | NAM, CVPR 2024 |
| sdm         | SDM           | the caption      | nothing                          |                  | no masking at all |
| irra        | SDM           | the caption      | nothing; MTP masks 15 % at random | MTP 1, ID 1     | IRRA, CVPR 2023 |
| contrastive | InfoNCE       | the caption      | nothing                          |                  | CLIP |
| tal         | TAL           | the caption      | nothing                          |                  | RDE, CVPR 2024 |

The weights are the published ones; those of the configuration replace them in every method that masks, and `matching` replaces
the matching loss of any method. Without masking there is nothing to predict: `sdm`, `contrastive` and `tal` have one loss. Methods
differ in what their line says and in nothing else, `gadms`, `random` and `unmasked` in masks alone; all temperatures are SDM's, but
for TAL, in which it smooths a maximum.
"""

from dataclasses import dataclass, replace
from typing import Literal

from components.gadms.config import MaskingConfig, Rule, ScoreName, ScoringConfig, Timing
from components.persons.augmentation import AugmentationConfig
from components.settings import AboveZero, Count, NotNegative, Positive, Rate, settings

Method = Literal["gadms", "random", "unmasked", "nam", "sdm", "irra", "contrastive", "tal"]
Matching = Literal["sdm", "contrastive", "tal"]
Masking = Literal["scores", "random", "none"]
DecoderStart = Literal["pretrained", "new"]


@dataclass(frozen=True)
class Recipe:
    """The losses and the masking of a method.

    Attributes:
        matching: the loss between pictures and captions.
        masking: how masked tokens are chosen.
        match_noise_copy: whether the matching loss reads the noise copy, or else the caption.
        mtp_weight, id_weight: of masked-token prediction and of identity classification, as published.
        score, rule: the token score and the masking rule of the method; None takes those of the configuration.
        bert: whether the method replaces predicted tokens as BERT does (80 % mask, 10 % another token, 10 % unchanged).
    """

    matching: Matching
    masking: Masking = "none"
    match_noise_copy: bool = False
    mtp_weight: float = 0.0
    id_weight: float = 0.0
    score: ScoreName | None = None
    rule: Rule | None = None
    bert: bool = False


TEMPERATURES: dict[Matching, float] = {"sdm": 0.02, "contrastive": 0.02, "tal": 0.015}
"""By matching loss, where the configuration states none."""

METHODS: dict[Method, Recipe] = {
    "gadms": Recipe("sdm", "scores", match_noise_copy=True, mtp_weight=0.4),
    "random": Recipe("sdm", "random", match_noise_copy=True, mtp_weight=0.4),
    "unmasked": Recipe("sdm", "random", mtp_weight=0.4),
    "nam": Recipe("sdm", "scores", match_noise_copy=True, score="max-patch", rule="nam"),
    "sdm": Recipe("sdm"),
    "irra": Recipe("sdm", "random", mtp_weight=1.0, id_weight=1.0, bert=True),
    "contrastive": Recipe("contrastive"),
    "tal": Recipe("tal"),
}


@settings
class RetrievalConfig:
    """The objective of one training phase: the method, a line of METHODS, and what holds for every method that uses it.

    Attributes:
        name: the method; None is gadms, or in a comparison that of the arm.
        warmup_steps, warmup_temperature: InfoNCE steps before the method's own, as SDM does not start from random weights.
        matching: the loss between pictures and captions after them; None is the method's.
        temperature: of the matching loss; None is 0.02, and 0.015 for `tal`.
        sdm_weight: of the matching loss, whichever it is, where there are others.
        mtp_weight, id_weight: of masked-token prediction and identity classification; None is the method's published weight.
        caption_aliasing: the matching and identity losses see the caption whose tokens are masked for prediction, as in the
            released IRRA, where the masking wrote into the batch by mistake. One text pass less.
        decoder_start: the masked-token decoder goes on from the one that the pretrained weights bring, or begins new. Without one
            it begins new.
        decoder_padding: the decoder attends to padding too, as in the released code of IRRA and GA-DMS.
        head_lr_factor: learning rate of the decoder and the classifier (IRRA: 5). bias_lr_factor: of biases (IRRA: 2). Which
            parameters these are is IRRA's rule, see parameter_groups.py.
        decay_gains: weight decay of norms' gains too, as in IRRA. Biases never have it.
        layer_decay: factor on the learning rate for each layer further from the output, in both towers; 1 is none.
        augmentation: of the training pictures; None leaves them as they are.
    """

    name: Method | None = None
    warmup_steps: Count = 0
    matching: Matching | None = None
    sdm_weight: NotNegative = 1.0
    mtp_weight: NotNegative | None = None
    id_weight: NotNegative | None = None
    temperature: AboveZero | None = None
    warmup_temperature: AboveZero = 0.07
    tal_margin: NotNegative = 0.1
    masking: MaskingConfig = MaskingConfig()
    scoring: ScoringConfig = ScoringConfig()
    score_timing: Timing = "previous"
    caption_aliasing: bool = False
    decoder_depth: Positive = 4
    decoder_start: DecoderStart = "pretrained"
    decoder_padding: bool = False
    head_lr_factor: AboveZero = 1.0
    bias_lr_factor: AboveZero = 1.0
    decay_gains: bool = False
    layer_decay: Rate = 1.0
    augmentation: AugmentationConfig | None = None

    def for_arm(self, arm: str | None) -> "RetrievalConfig":
        """These settings with the arm as the method where they name none. Raises ParameterError for an arm that is not a method."""
        return replace(self, name=self.name or arm)  # type: ignore[arg-type]

    @property
    def recipe(self) -> Recipe:
        """The method's recipe, with the matching loss and weights of this configuration."""
        recipe = METHODS[self.name or "gadms"]
        recipe = replace(recipe, matching=self.matching or recipe.matching)
        if recipe.masking == "none":
            return recipe
        return replace(
            recipe,
            mtp_weight=recipe.mtp_weight if self.mtp_weight is None else self.mtp_weight,
            id_weight=recipe.id_weight if self.id_weight is None else self.id_weight,
        )

    @property
    def matching_temperature(self) -> float:
        """The temperature of the matching loss."""
        return TEMPERATURES[self.recipe.matching] if self.temperature is None else self.temperature
