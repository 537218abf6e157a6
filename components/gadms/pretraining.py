"""Pre-training of a dual encoder on clean captions: InfoNCE and masked-token prediction together, from the first step.

The methods of methods.py begin from an encoder that this trains, as they begin from CLIP. So it has the loss that CLIP was trained
by, the decoder that IRRA and GA-DMS add to it, and nothing that they compare.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from components.gadms.decoder import CrossModalDecoder, padding_mask
from components.gadms.masking import dual_mask
from components.gadms.model import DualEncoder
from components.gadms.objectives import contrastive, cosine_similarities, gather_features, masked_token_prediction
from components.gadms.tasks import RetrievalBatch
from components.persons.drawn.fresh import FreshPeople, stacked
from components.training.numbered import OncePerSample, part_of
from components.training.task import TrainingTask


class EncoderPretraining(TrainingTask):
    """Contrastive loss on the captions, and `mtp_weight` times masked-token prediction on a copy of them.

    Batch: a `RetrievalBatch` without diagnostics. Scalars: loss, contrastive, mtp (before weighting), matched: the fraction of
    captions whose own picture is the nearest of the batch.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        seed: int,
        mtp_weight: float = 0.4,
        temperature: float = 0.07,
        decoder_depth: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.encoder, self.seed, self.mtp_weight, self.temperature = encoder, seed, mtp_weight, temperature
        self.rank, self.world_size = rank, world_size
        encoder.clip.logit_scale.requires_grad_(False)  # the temperature is fixed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = CrossModalDecoder(encoder.embed_dim, encoder.clip.vocab_size, depth=decoder_depth)

    def forward(self, batch: RetrievalBatch, step: int) -> dict[str, Tensor]:
        ids = batch["ids"]
        copies = dual_mask(
            ids,
            ids.new_full(ids.shape, -1).float(),  # unknown scores: masked at random
            mask_id=self.encoder.tokenizer.mask_id,
            seed=self.seed,
            step=step,
            rank=self.rank,
            world_size=self.world_size,
        )
        image, image_tokens = self.encoder.encode_image(batch["pixels"])
        pooled, tokens = self.encoder.encode_text(torch.cat([ids, copies.prediction_ids]))
        text, tokens = pooled[: len(ids)], tokens[len(ids) :]
        pictures, texts, people = map(gather_features, (image, text, batch["identities"]))
        matching = contrastive(pictures, texts, people, self.temperature)
        length = tokens.shape[1]
        chosen = copies.prediction_chosen[:, :length]
        logits = self.decoder(tokens, image_tokens, padding_mask(ids, length), chosen)
        prediction = masked_token_prediction(logits, copies.labels[:, :length][chosen])
        with torch.no_grad():
            similarity = cosine_similarities(texts, pictures)
            matched = (similarity.argmax(1) == torch.arange(len(similarity), device=similarity.device)).float().mean()
        loss = matching + self.mtp_weight * prediction
        return {"loss": loss, "contrastive": matching, "mtp": prediction, "matched": matched}

    def save(self, folder: Path) -> None:
        """Write the encoder, its tokenizer and the decoder to a folder that `DualEncoder.load` reads."""
        self.encoder.save(folder, decoder=self.decoder.state_dict())


def fresh_pairs(
    encoder: DualEncoder, people: FreshPeople, training: OncePerSample, *, rank: int = 0, world_size: int = 1
) -> Callable[[int], RetrievalBatch]:
    """Return batches by step of people drawn afresh and their captions, this rank's part of each."""

    def batch(step: int) -> RetrievalBatch:
        numbers = part_of(training.numbers(step), rank, world_size)
        drawn = people.people(numbers)
        device = encoder.device
        order = torch.tensor(list(numbers), device=device)
        return RetrievalBatch(
            pixels=encoder.normalize_pixels(stacked(drawn)),
            ids=encoder.tokenizer([person.caption for person in drawn]).to(device),
            identities=order,  # nobody comes twice
            caption_index=order,
        )

    return batch
