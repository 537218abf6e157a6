"""What GA-DMS brings to the training loop: the model, the losses, and the form of a batch.

    L = sdm_weight * SDM(image, noise copy) + mtp_weight * MTP(prediction copy, image) + id_weight * ID
    (equation 11)

One task serves pre-training (SDM + 0.4 MTP), fine-tuning (SDM + MTP + ID, IRRA's recipe) and the two controls, random
masking and plain contrastive learning, so that the arms of a comparison differ in what is compared and in nothing
else.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.errors import ParameterError
from components.gadms.decoder import CrossModalDecoder, padding_mask
from components.gadms.masking import DualMask, MaskingConfig, dual_mask, maskable, random_mask
from components.gadms.model import DualEncoder
from components.gadms.objectives import (
    contrastive,
    gather_features,
    identity_classification,
    masked_token_prediction,
    similarity_distribution_matching,
    world_size,
)
from components.gadms.score_table import ScoreTable
from components.gadms.scores import gradient_attention_scores


class RetrievalBatch(TypedDict, total=False):
    """This rank's rows of a global batch; all ranks have the same number."""

    pixels: Tensor  # float (B, 3, H, W), normalised
    ids: Tensor  # int64 (B, T), raw captions
    identities: Tensor  # int64 (B,); 0..identities-1 where ID is used
    caption_index: Tensor  # int64 (B,), row of the caption in the whole training set
    wrong: Tensor  # bool (B, T), optional: tokens of hallucinated words, for diagnostics only


@dataclass(frozen=True)
class RetrievalConfig:
    """What is trained. `method` is the arm; the rest holds for every arm that uses it.

    gadms: scores decide what is masked. random: both copies masked at random (the control every gain must be held
    against). contrastive: InfoNCE on raw captions, nothing else.
    """

    method: Literal["gadms", "random", "contrastive"] = "gadms"
    warmup_steps: int = 0  # InfoNCE steps before SDM, which does not start from random weights
    sdm_weight: float = 1.0
    mtp_weight: float = 0.4
    id_weight: float = 0.0
    sdm_temperature: float = 0.02
    contrastive_temperature: float = 0.07
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    share_copies: bool = (
        False  # the matching loss sees the prediction copy: IRRA's published behaviour, one text pass less
    )
    score_timing: Literal["previous", "same-step"] = "previous"
    scoring_layers: int | None = None  # None: two thirds of the text layers
    pooling_scales: tuple[int, ...] = (1, 2)
    scoring_heads: Literal["model", "single"] = "model"
    decoder_depth: int = 4
    head_lr_factor: float = 1.0  # IRRA: 5 for decoder and classifier
    bias_lr_factor: float = 1.0  # IRRA: 2

    def __post_init__(self) -> None:
        allowed = {
            "method": ("gadms", "random", "contrastive"),
            "score_timing": ("previous", "same-step"),
            "scoring_heads": ("model", "single"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ParameterError(f"{name} = {getattr(self, name)!r}: allowed are {', '.join(values)}")
        for name in ("warmup_steps", "sdm_weight", "mtp_weight", "id_weight"):
            if getattr(self, name) < 0:
                raise ParameterError(f"{name} = {getattr(self, name)}: must not be negative")
        for name in ("sdm_temperature", "contrastive_temperature"):
            if not getattr(self, name) > 0:
                raise ParameterError(f"{name} = {getattr(self, name)}: must be above 0")


class RetrievalTask(nn.Module):
    """Model, losses and batch contract. `captions` is the number of training captions, `identities` of training
    identities.
    """

    def __init__(
        self, encoder: DualEncoder, config: RetrievalConfig, *, captions: int, identities: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.encoder = encoder
        encoder.clip.logit_scale.requires_grad_(False)  # both temperatures are fixed
        plain = config.method == "contrastive"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = None
            if config.mtp_weight and not plain:
                self.decoder = CrossModalDecoder(encoder.embed_dim, encoder.clip.vocab_size, depth=config.decoder_depth)
            self.classifier = None
            if config.id_weight and not plain:
                if identities < 1:
                    raise ParameterError(
                        f"id_weight = {config.id_weight} needs the number of identities, got {identities}"
                    )
                self.classifier = nn.Linear(encoder.embed_dim, identities)
                nn.init.normal_(self.classifier.weight, std=0.001)
                nn.init.zeros_(self.classifier.bias)
        self.score_table = None
        if config.method == "gadms" and config.score_timing == "previous":
            self.score_table = ScoreTable(captions, encoder.clip.context_length)

    def forward(self, batch: RetrievalBatch, step: int) -> dict[str, Tensor]:
        """Scalars, "loss" among them. The other losses are logged before weighting."""
        image, image_tokens = self.encoder.encode_image(batch["pixels"])
        if self.config.method == "contrastive" or step < self.config.warmup_steps:
            return self._contrastive_step(batch, image)
        return self._masked_step(batch, step, image, image_tokens)

    def _contrastive_step(self, batch: RetrievalBatch, image: Tensor) -> dict[str, Tensor]:
        text, _ = self.encoder.encode_text(batch["ids"])
        image, text, identities = map(gather_features, (image, text, batch["identities"]))
        loss = contrastive(image, text, identities, self.config.contrastive_temperature)
        return {"loss": loss + self._unused(self.decoder, self.classifier), "contrastive": loss}

    def _masked_step(self, batch: RetrievalBatch, step: int, image: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        config = self.config
        copies, scalars = self._mask(batch, image, step)
        text, prediction_tokens = self._encode_copies(copies)
        all_image, all_text, all_identities = map(gather_features, (image, text, batch["identities"]))
        sdm = similarity_distribution_matching(all_image, all_text, all_identities, config.sdm_temperature)
        loss = config.sdm_weight * sdm
        scalars["sdm"] = sdm
        if self.decoder is not None:
            length = prediction_tokens.shape[1]
            chosen = copies.prediction_chosen[:, :length]
            logits = self.decoder(prediction_tokens, image_tokens, padding_mask(batch["ids"], length), chosen)
            scalars["mtp"] = masked_token_prediction(logits, copies.labels[:, :length][chosen])
            loss = loss + config.mtp_weight * scalars["mtp"]
        if self.classifier is not None:
            scalars["id"] = identity_classification(image, text, batch["identities"], self.classifier)
            loss = loss + config.id_weight * scalars["id"]
        return {"loss": loss, **scalars}

    def _encode_copies(self, copies: DualMask) -> tuple[Tensor, Tensor]:
        """Matching feature (B, D) and the prediction copy's tokens (B, L, D), in one pass through the text tower."""
        if self.config.share_copies:
            return self.encoder.encode_text(copies.prediction_ids)
        if self.decoder is None:
            return self.encoder.encode_text(copies.noise_ids)
        pooled, tokens = self.encoder.encode_text(torch.cat([copies.noise_ids, copies.prediction_ids]))
        rows = len(copies.noise_ids)
        return pooled[:rows], tokens[rows:]

    @torch.no_grad()
    def _mask(self, batch: RetrievalBatch, image: Tensor, step: int) -> tuple[DualMask, dict[str, Tensor]]:
        """Both copies of this rank's captions, and what there is to log about them."""
        config, ids = self.config, batch["ids"]
        mask_id = self.encoder.tokenizer.mask_id
        ranks = world_size()
        rank = dist.get_rank() if ranks > 1 else 0
        if config.method == "random":
            copies = random_mask(
                ids, mask_id=mask_id, seed=self.seed, step=step, config=config.masking, rank=rank, world_size=ranks
            )
            return copies, {"noise_rate": copies.noise_rate, "prediction_rate": copies.prediction_rate}
        fresh = gradient_attention_scores(
            self.encoder,
            ids,
            image,
            layers=config.scoring_layers,
            scales=config.pooling_scales,
            heads=config.scoring_heads,
        )
        known = fresh
        if self.score_table is not None:
            known = self.score_table.lookup(batch["caption_index"])
            self.score_table.update(batch["caption_index"], fresh)
        copies = dual_mask(
            ids, known, mask_id=mask_id, seed=self.seed, step=step, config=config.masking, rank=rank, world_size=ranks
        )
        scalars = {
            "noise_rate": copies.noise_rate,
            "prediction_rate": copies.prediction_rate,
            "score_known": (known >= 0).all(dim=-1).float().mean(),
        }
        if "wrong" in batch:
            scalars |= noise_diagnostics(fresh, copies, batch["wrong"], maskable(ids, mask_id))
        return copies, scalars

    def _unused(self, *modules: nn.Module | None) -> Tensor:
        """Zero that depends on every parameter of `modules`: DDP wants each one in every step's graph."""
        zero = torch.zeros((), device=self.encoder.device)
        for module in modules:
            if module is not None:
                zero = zero + sum(parameter.sum() for parameter in module.parameters()) * 0
        return zero

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups: heads at `head_lr_factor`, biases and norms at `bias_lr_factor` and without weight decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                key = (name.startswith(("decoder.", "classifier.")), parameter.ndim < 2)
                groups.setdefault(key, []).append(parameter)
        result: list[dict[str, Any]] = []
        for (head, bias), parameters in sorted(groups.items()):
            factor = (self.config.head_lr_factor if head else 1.0) * (self.config.bias_lr_factor if bias else 1.0)
            group: dict[str, Any] = {"params": parameters, "lr": learning_rate * factor}
            result.append(group | ({"weight_decay": 0.0} if bias else {}))
        return result


def noise_diagnostics(scores: Tensor, copies: DualMask, wrong: Tensor, allowed: Tensor) -> dict[str, Tensor]:
    """How well scores and masks find the wrong tokens: all of scores, wrong, allowed (B, T).

    noise_auc: probability that a right token scores above a wrong one (ties one half; 0.5 if a class is empty).
    noise_precision: share of wrong ones among the tokens masked in the noise copy, to be held against wrong_share;
    noise_recall: share of the wrong ones that are masked there.
    """
    wrong = wrong & allowed
    hit = (copies.noise_chosen & wrong).sum()
    return {
        "noise_auc": _auc(scores[allowed & ~wrong], scores[wrong]),
        "noise_precision": hit / copies.noise_chosen.sum().clamp_min(1),
        "noise_recall": hit / wrong.sum().clamp_min(1),
        "wrong_share": wrong.sum() / allowed.sum().clamp_min(1),
    }


def _auc(high: Tensor, low: Tensor) -> Tensor:
    """P(high > low) + P(high = low) / 2 over all pairs, from one sort."""
    if not len(high) or not len(low):
        return torch.full((), 0.5, device=high.device)
    ordered = low.sort().values
    below = torch.searchsorted(ordered, high, side="left")
    not_above = torch.searchsorted(ordered, high, side="right")
    return (below + not_above).float().mean() / (2 * len(low))
