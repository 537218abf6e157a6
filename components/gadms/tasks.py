"""GA-DMS's training task: the model, the losses, and the form of a batch.

    L = sdm_weight * SDM(image, noise copy) + mtp_weight * MTP(prediction copy, image) + id_weight * ID
    (equation 11; another matching loss may take the place of SDM)

One task serves every method of the table in methods.py, in pre-training (SDM + 0.4 MTP) and in fine-tuning (SDM + MTP +
ID, IRRA's recipe), so that the arms of a comparison differ in what is compared and in nothing else.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from components.errors import ParameterError
from components.gadms.caption_scorer import CaptionScorer
from components.gadms.config import ScoringConfig
from components.gadms.decoder import CrossModalDecoder, padding_mask
from components.gadms.masking import DualMask
from components.gadms.methods import Matching, RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.objectives import (
    contrastive,
    gather_features,
    identity_classification,
    masked_token_prediction,
    similarity_distribution_matching,
    triplet_alignment,
)
from components.gadms.parameter_groups import grouped
from components.gadms.selection import BestWeights
from components.training.task import TrainingTask

_NOISE_COPY_SCALARS = ("noise_rate", "noise_precision", "noise_recall")


class RetrievalBatch(TypedDict, total=False):
    """This rank's rows of a global batch; all ranks have the same number."""

    pixels: Tensor  # float (B, 3, H, W), normalised
    ids: Tensor  # int64 (B, T), raw captions
    identities: Tensor  # int64 (B,); 0..identities-1 where ID is used
    caption_index: Tensor  # int64 (B,), row of the caption in the whole training set
    wrong: Tensor  # bool (B, T), optional: tokens of hallucinated words, for diagnostics only
    facts: Tensor  # bool (B, T), optional beside `wrong`: tokens of words that state a fact


class RetrievalTask(TrainingTask):
    """Model, losses and batch contract. captions, identities: numbers of both. keep_best: keep the best validated weights."""

    def __init__(
        self,
        encoder: DualEncoder,
        config: RetrievalConfig,
        *,
        captions: int,
        identities: int = 0,
        seed: int = 0,
        keep_best: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.recipe, self.seed = config, config.recipe, seed
        self.encoder = encoder
        encoder.clip.logit_scale.requires_grad_(False)  # both temperatures are fixed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = self._decoder() if self.recipe.mtp_weight else None
            self.classifier = None
            if self.recipe.id_weight:
                if identities < 1:
                    weight = self.recipe.id_weight
                    raise ParameterError(f"id_weight = {weight} needs the number of identities, got {identities}")
                self.classifier = nn.Linear(encoder.embed_dim, identities)
                nn.init.normal_(self.classifier.weight, std=0.001)
                nn.init.zeros_(self.classifier.bias)
        self.scorer = self._scorer(captions)
        self.best = BestWeights(encoder, self.decoder) if keep_best else None

    def _decoder(self) -> CrossModalDecoder:
        """The decoder that was trained with the encoder's weights, as in the released fine-tuning, or a new one."""
        encoder = self.encoder
        decoder = CrossModalDecoder(encoder.embed_dim, encoder.clip.vocab_size, depth=self.config.decoder_depth)
        if self.continues_decoder:
            decoder.continue_from(encoder.decoder_weights or {})
        return decoder

    @property
    def continues_decoder(self) -> bool:
        """Whether the decoder is the one that was trained with the encoder's first weights."""
        return self.config.decoder_start == "pretrained" and self.encoder.decoder_weights is not None

    def _scorer(self, captions: int) -> CaptionScorer | None:
        """The scorer with the method's score and masking rule, or else those of the configuration."""
        config, recipe = self.config, self.recipe
        if recipe.masking == "none":
            return None
        scoring = None
        if recipe.masking == "scores":
            scoring = config.scoring if recipe.score is None else ScoringConfig(name=recipe.score)
        masking = config.masking if recipe.rule is None else replace(config.masking, rule=recipe.rule)
        if recipe.bert:
            masking = replace(masking, prediction_replacement="bert")
        return CaptionScorer(
            self.encoder, captions, scoring=scoring, masking=masking, timing=config.score_timing, seed=self.seed
        )

    def forward(self, batch: RetrievalBatch, step: int) -> dict[str, Tensor]:
        """Scalars, "loss" among them. The other losses are logged before weighting."""
        image, image_tokens = self.encoder.encode_image(batch["pixels"])
        if step < self.config.warmup_steps:
            if self.scorer is not None:
                self.scorer.remember(self.encoder, batch, image, image_tokens, step)
            return self._caption_step(batch, image, "contrastive", self.config.warmup_temperature)
        if self.recipe.masking == "none":
            return self._caption_step(batch, image, self.recipe.matching, self.config.matching_temperature)
        return self._masked_step(batch, step, image, image_tokens)

    def _caption_step(
        self, batch: RetrievalBatch, image: Tensor, matching: Matching, temperature: float
    ) -> dict[str, Tensor]:
        """One loss between pictures and unmasked captions."""
        text, _ = self.encoder.encode_text(batch["ids"])
        loss = self._matching_loss(matching, image, text, batch["identities"], temperature)
        return {"loss": loss + self._zero_term(self.decoder, self.classifier), matching: loss}

    def _matching_loss(
        self, matching: Matching, image: Tensor, text: Tensor, identities: Tensor, temperature: float
    ) -> Tensor:
        """The loss between the pictures and captions of all ranks; image, text (B, D) of this one."""
        image, text, identities = map(gather_features, (image, text, identities))
        if matching == "tal":
            return triplet_alignment(image, text, identities, temperature, self.config.tal_margin)
        loss = contrastive if matching == "contrastive" else similarity_distribution_matching
        return loss(image, text, identities, temperature)

    def _masked_step(self, batch: RetrievalBatch, step: int, image: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        config, recipe = self.config, self.recipe
        assert self.scorer is not None
        copies, scalars = self.scorer.mask(self.encoder, self.decoder, batch, image, image_tokens, step)
        if config.caption_aliasing or not recipe.match_noise_copy:  # the noise copy is not used
            scalars = {name: value for name, value in scalars.items() if name not in _NOISE_COPY_SCALARS}
        text, prediction_tokens = self._encode_copies(batch["ids"], copies)
        name, temperature = recipe.matching, config.matching_temperature
        scalars[name] = self._matching_loss(name, image, text, batch["identities"], temperature)
        loss = config.sdm_weight * scalars[name]
        if self.decoder is not None:
            length = prediction_tokens.shape[1]
            chosen = copies.prediction_chosen[:, :length]
            padding = None if config.decoder_padding else padding_mask(batch["ids"], length)
            logits = self.decoder(prediction_tokens, image_tokens, padding, chosen)
            self.scorer.observe(batch, copies, logits)
            scalars["mtp"] = masked_token_prediction(logits, copies.labels[:, :length][chosen])
            loss = loss + recipe.mtp_weight * scalars["mtp"]
        if self.classifier is not None:
            scalars["id"] = identity_classification(image, text, batch["identities"], self.classifier)
            loss = loss + recipe.id_weight * scalars["id"]
        return {"loss": loss, **scalars}

    def _encode_copies(self, ids: Tensor, copies: DualMask) -> tuple[Tensor, Tensor]:
        """Matching feature (B, D) and the prediction copy's tokens (B, L, D), in one pass through the text tower."""
        padding = self.config.decoder_padding
        if self.config.caption_aliasing:
            return self.encoder.encode_text(copies.prediction_ids, padding=padding)
        matching = copies.noise_ids if self.recipe.match_noise_copy else ids
        if self.decoder is None:
            return self.encoder.encode_text(matching)
        pooled, tokens = self.encoder.encode_text(torch.cat([matching, copies.prediction_ids]), padding=padding)
        rows = len(matching)
        return pooled[:rows], tokens[rows:]

    @property
    def masked_by_score(self) -> float | None:
        """The fraction of masked caption visits so far that a score masked; None without a score."""
        return None if self.scorer is None else self.scorer.masked_by_score

    def _zero_term(self, *modules: nn.Module | None) -> Tensor:
        """Return 0 with a gradient path to every parameter of `modules`, because DDP needs each one in every step's graph."""
        zero = torch.zeros((), device=self.encoder.device)
        for module in modules:
            if module is not None:
                zero = zero + sum(parameter.sum() for parameter in module.parameters()) * 0
        return zero

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """For the optimiser: see `grouped`."""
        config = self.config
        return grouped(
            self,
            learning_rate,
            head_factor=config.head_lr_factor,
            bias_factor=config.bias_lr_factor,
            decay_gains=config.decay_gains,
            layer_decay=config.layer_decay,
        )

    def save(self, folder: Path) -> None:
        """Write the encoder, with the decoder that was trained with it, to a folder that `DualEncoder.load` reads.

        With `keep_best` the best weights are restored first.
        """
        if self.best is not None:
            self.best.restore()
        self.encoder.save(folder, decoder=None if self.decoder is None else self.decoder.state_dict())
