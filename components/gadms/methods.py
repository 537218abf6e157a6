"""The methods that are compared, each as one line of a table.

| method      | matching loss | on which caption | what is masked in it             | beside it        | from |
|-------------|---------------|------------------|----------------------------------|------------------|------|
| gadms       | SDM           | noise copy       | what the score takes for noise   | MTP 0.4          | GA-DMS, arXiv 2509.09118 |
| random      | SDM           | noise copy       | anything, 15 %                   | MTP 0.4          | the control of gadms |
| nam         | SDM           | noise copy       | what no patch resembles, 15 %    |                  | NAM, CVPR 2024 |
| irra        | SDM           | the caption      | nothing; MTP masks 15 % at random | MTP 1, ID 1     | IRRA, CVPR 2023 |
| contrastive | InfoNCE       | the caption      | nothing                          |                  | CLIP |
| tal         | TAL           | the caption      | nothing                          |                  | RDE, CVPR 2024 |

The weights are those of the publications; a configuration that states its own has them in every method that masks. What is never
masked has nothing to predict: `contrastive` and `tal` have their one loss.
"""

from dataclasses import dataclass
from typing import Literal

from components.errors import ParameterError
from components.gadms.masking import Rule
from components.gadms.scores.scoring import ScoreName

Method = Literal["gadms", "random", "nam", "irra", "contrastive", "tal"]
Matching = Literal["sdm", "contrastive", "tal"]
Masking = Literal["scores", "random", "none"]


@dataclass(frozen=True)
class Recipe:
    """What a method trains on.

    Attributes:
        matching: the loss between pictures and captions.
        masking: how tokens are chosen; "none" leaves captions alone.
        match_noise_copy: whether the matching loss sees the noise copy; otherwise the caption as it is.
        mtp_weight, id_weight: of masked-token prediction and of identity classification, as published.
        score, rule: the token score and the masking rule that are part of the method; None leaves both to the configuration.
        bert: whether predicted tokens are replaced as in BERT (80 % mask, 10 % another token, 10 % left) as part of the method.
    """

    matching: Matching
    masking: Masking = "none"
    match_noise_copy: bool = False
    mtp_weight: float = 0.0
    id_weight: float = 0.0
    score: ScoreName | None = None
    rule: Rule | None = None
    bert: bool = False


METHODS: dict[Method, Recipe] = {
    "gadms": Recipe("sdm", "scores", match_noise_copy=True, mtp_weight=0.4),
    "random": Recipe("sdm", "random", match_noise_copy=True, mtp_weight=0.4),
    "nam": Recipe("sdm", "scores", match_noise_copy=True, score="max-patch", rule="nam"),
    "irra": Recipe("sdm", "random", mtp_weight=1.0, id_weight=1.0, bert=True),
    "contrastive": Recipe("contrastive"),
    "tal": Recipe("tal"),
}


def recipe_of(method: str) -> Recipe:
    """The table's line. Raises ParameterError naming the methods there are."""
    for name, recipe in METHODS.items():
        if name == method:
            return recipe
    raise ParameterError(f"method = {method!r}: allowed are {', '.join(METHODS)}")
