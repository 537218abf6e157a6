"""Pre-training of the encoder against its two losses computed apart."""

import pytest
import torch
from torch.nn import functional as F

from components.gadms.model import DualEncoder
from components.gadms.pretraining import EncoderPretraining, fresh_pairs
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.drawn.catalogue import catalogue_words
from components.persons.drawn.fresh import CATALOGUE_PEOPLE, FreshPeople
from components.training.context import LocalContext
from components.training.loop import fit
from components.training.numbered import OncePerSample

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [64, 32], "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TRAINING = OncePerSample(steps=30, learning_rate=0.01, batch=8, report_every=30)


@pytest.fixture
def task() -> EncoderPretraining:
    tokenizer = CaptionTokenizer.from_corpus(catalogue_words(), 24)
    return EncoderPretraining(DualEncoder.create(CONFIG, tokenizer=tokenizer), seed=0, mtp_weight=0.3)


@pytest.fixture
def batches(task):
    people = FreshPeople(0, "pairs", {"clean": 1.0}, height=64, width=32, domain=CATALOGUE_PEOPLE)
    return fresh_pairs(task.encoder, people, TRAINING)


def test_the_loss_is_infonce_of_the_captions_plus_prediction_of_masked_tokens(task, batches):
    batch = batches(3)
    scalars = task(batch, 3)
    image, _ = task.encoder.encode_image(batch["pixels"])
    text, _ = task.encoder.encode_text(batch["ids"])  # nothing is masked in what is matched
    logits = F.normalize(text.double(), dim=1) @ F.normalize(image.double(), dim=1).T / 0.07
    own = torch.arange(8)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(scalars["contrastive"].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scalars["loss"], scalars["contrastive"] + 0.3 * scalars["mtp"])
    vocabulary = torch.tensor(float(task.encoder.tokenizer.vocab_size))
    assert abs(scalars["mtp"] - vocabulary.log()) < 1.5  # of a decoder that knows nothing
    scalars["loss"].backward()
    assert task.decoder.vocabulary.weight.grad.abs().sum() > 0
    assert task.encoder.clip.token_embedding.weight.grad.abs().sum() > 0


def test_both_losses_fall_and_the_folder_brings_the_decoder(task, batches, tmp_path):
    before = {key: value.item() for key, value in task(batches(0), 0).items()}
    fit(task, batches, TRAINING, LocalContext())
    after = {key: value.item() for key, value in task(batches(0), 0).items()}
    assert after["mtp"] < before["mtp"] - 1
    assert after["contrastive"] < before["contrastive"] + 0.05
    task.save(tmp_path)
    loaded = DualEncoder.load(tmp_path)
    assert loaded.decoder_weights is not None
    for name, value in task.decoder.state_dict().items():
        assert torch.equal(loaded.decoder_weights[name], value)


def test_two_ranks_draw_the_two_halves_of_the_batch(task, batches):
    people = FreshPeople(0, "pairs", {"clean": 1.0}, height=64, width=32, domain=CATALOGUE_PEOPLE)
    halves = [fresh_pairs(task.encoder, people, TRAINING, rank=rank, world_size=2)(5) for rank in (0, 1)]
    whole = batches(5)
    for key in ("pixels", "ids", "identities"):
        assert torch.equal(torch.cat([half[key] for half in halves]), whole[key])
    assert len(set(whole["identities"].tolist())) == 8
