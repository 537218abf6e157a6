"""Any matching loss with any masks, against the losses themselves on the captions that the masks leave."""

from dataclasses import replace

import pytest
import torch

from components.gadms.config import MaskingConfig, ScoringConfig
from components.gadms.masking import dual_mask
from components.gadms.matching_task import MatchingTask
from components.gadms.methods import RetrievalConfig
from components.gadms.objectives import contrastive, similarity_distribution_matching
from components.gadms.tasks import RetrievalTask

LOSSES = {"contrastive": contrastive, "sdm": similarity_distribution_matching}


@pytest.fixture
def batch(ids, pixels):
    wrong = torch.zeros(ids.shape, dtype=torch.bool)
    wrong[:3, 3] = True
    index = torch.arange(4)
    return {"pixels": pixels, "ids": ids, "identities": index, "caption_index": index, "wrong": wrong}


@pytest.mark.parametrize("matching", LOSSES)
@pytest.mark.parametrize("temperature", [0.02, 0.07])
@pytest.mark.parametrize("masks", ["none", "random", "truth"])
def test_the_loss_is_the_named_one_on_what_the_masks_leave_of_the_captions(
    encoder, batch, matching, temperature, masks
):
    config = {
        "none": RetrievalConfig(name="sdm"),
        "random": RetrievalConfig(name="random", mtp_weight=0.0),
        "truth": RetrievalConfig(
            name="gadms",
            mtp_weight=0.0,
            score_timing="same-step",
            scoring=ScoringConfig(name="truth"),
            masking=MaskingConfig(noise_limit=1.0, threshold=0.5),
        ),
    }[masks]
    task = MatchingTask(encoder, replace(config, temperature=temperature), matching=matching, captions=4, seed=3)
    scalars = task(batch, 5)
    read = batch["ids"].clone()
    if masks == "truth":
        read[batch["wrong"]] = encoder.tokenizer.mask_id
    elif masks == "random":
        unknown = torch.full(read.shape, -1.0)
        read = dual_mask(read, unknown, mask_id=encoder.tokenizer.mask_id, seed=3, step=5).noise_ids
    image, _ = encoder.encode_image(batch["pixels"])
    text, _ = encoder.encode_text(read)
    expected = LOSSES[matching](image, text, batch["identities"], temperature)
    torch.testing.assert_close(scalars["loss"], expected)
    assert {name for name in LOSSES if name in scalars} == {matching}


def test_without_a_loss_it_is_the_methods_task_and_the_warm_up_stays(encoder, batch):
    config = RetrievalConfig(name="random", decoder_depth=1, warmup_steps=1)
    own, plain = (MatchingTask(encoder, config, matching=None, captions=4), RetrievalTask(encoder, config, captions=4))
    for step in (0, 1):
        assert {k: v.item() for k, v in own(batch, step).items()} == {
            k: v.item() for k, v in plain(batch, step).items()
        }
    tal = MatchingTask(encoder, config, matching="tal", captions=4)
    torch.testing.assert_close(tal(batch, 0)["loss"], plain(batch, 0)["loss"])  # the warm-up
    assert "tal" in tal(batch, 1)
