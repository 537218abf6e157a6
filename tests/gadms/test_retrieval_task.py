from dataclasses import replace

import pytest
import torch
from two_processes import in_two_processes

from components.errors import ParameterError
from components.gadms.batches import CaptionBatches
from components.gadms.config import MaskingConfig, ScoringConfig
from components.gadms.masking import dual_mask
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.scores.scoring import token_scores
from components.gadms.tasks import RetrievalTask
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.augmentation import AugmentationConfig
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit

ARMS = {
    "gadms": RetrievalConfig(decoder_depth=1),
    "same-step": RetrievalConfig(decoder_depth=1, score_timing="same-step"),
    "random": RetrievalConfig(name="random", decoder_depth=1, id_weight=1.0, mtp_weight=1.0),
    "contrastive": RetrievalConfig(name="contrastive"),
    "shared": RetrievalConfig(name="random", decoder_depth=1, caption_aliasing=True),
    "matching only": RetrievalConfig(mtp_weight=0.0),
    "nam": RetrievalConfig(name="nam"),
    "irra": RetrievalConfig(name="irra", decoder_depth=1),
    "tal": RetrievalConfig(name="tal"),
    "sdm": RetrievalConfig(name="sdm"),
}


@pytest.fixture
def batch(encoder, captions, ids, pixels):
    wrong = torch.zeros(ids.shape, dtype=torch.bool)
    wrong[:3, 3] = True
    index = torch.arange(4)
    return {"pixels": pixels, "ids": ids, "identities": index, "caption_index": index, "wrong": wrong}


@pytest.mark.parametrize("arm", ARMS)
def test_every_trainable_parameter_gets_a_gradient_in_every_step(encoder, batch, arm):
    for warmup in (0, 1):
        task = RetrievalTask(encoder, replace(ARMS[arm], warmup_steps=warmup), captions=4, identities=4)
        task.zero_grad()
        scalars = task(batch, 0)
        scalars["loss"].backward()
        assert all(value.ndim == 0 for value in scalars.values())
        missing = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing


def test_the_total_is_the_weighted_sum_of_the_losses(encoder, batch):
    config = RetrievalConfig(name="random", decoder_depth=1, sdm_weight=2.0, mtp_weight=0.4, id_weight=0.7)
    scalars = RetrievalTask(encoder, config, captions=4, identities=4)(batch, 0)
    expected = 2 * scalars["sdm"] + 0.4 * scalars["mtp"] + 0.7 * scalars["id"]
    torch.testing.assert_close(scalars["loss"], expected)


def test_the_warmup_is_contrastive_and_ends_at_its_step(encoder, batch):
    task = RetrievalTask(encoder, RetrievalConfig(warmup_steps=3, decoder_depth=1), captions=4)
    assert "contrastive" in task(batch, 2)
    assert "sdm" in task(batch, 3)
    assert (task.scorer.scores.lookup(torch.arange(4)) >= 0).all()


def test_the_first_masked_step_has_the_scores_of_the_warm_up(encoder, batch, monkeypatch):
    """And the share of caption visits that a score masked is that of the captions seen before."""
    seen = []
    monkeypatch.setattr(
        "components.gadms.caption_scorer.dual_mask",
        lambda ids, known, **rest: (seen.append(known), dual_mask(ids, known, **rest))[1],
    )
    task = RetrievalTask(encoder, RetrievalConfig(warmup_steps=2, decoder_depth=1), captions=6)
    with torch.no_grad():
        expected = token_scores(encoder, batch["ids"], *encoder.encode_image(batch["pixels"]))
    assert task.masked_by_score is None
    for step in range(2):
        task(batch, step)["loss"].backward()
        assert not seen
    scalars = task(batch, 2)
    torch.testing.assert_close(seen[0], expected, atol=0.5 / 254 + 1e-6, rtol=0)
    assert scalars["masked_by_score"] == task.masked_by_score == 1
    scalars = task({**batch, "caption_index": torch.tensor([0, 4, 1, 5])}, 3)  # two were never seen
    assert scalars["masked_by_score"] == 0.5
    assert task.masked_by_score == 0.75


@pytest.mark.parametrize("method", ["random", "sdm", "same-step", "likelihood"])
def test_a_warm_up_keeps_nothing_where_no_score_of_an_earlier_visit_is_used(encoder, batch, method):
    config = ARMS.get(method) or RetrievalConfig(scoring=ScoringConfig(name="likelihood"), decoder_depth=1)
    task = RetrievalTask(encoder, replace(config, warmup_steps=1), captions=4, identities=4)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task(batch, 0)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert task.masked_by_score is None


def test_the_raw_captions_of_the_batch_are_not_changed(encoder, batch):
    before = batch["ids"].clone()
    config = RetrievalConfig(name="random", masking=MaskingConfig(random_noise_rate=1.0, random_prediction_rate=1.0))
    RetrievalTask(encoder, config, captions=4)(batch, 0)["loss"].backward()
    assert torch.equal(batch["ids"], before)


def test_a_captions_predictions_do_not_depend_on_the_length_of_its_neighbours(encoder, batch):
    config = RetrievalConfig(name="random", masking=MaskingConfig(random_prediction_rate=1.0), decoder_depth=2)
    task = RetrievalTask(encoder, config, captions=4).eval()
    whole = task({key: value[[1, 1]] for key, value in batch.items()}, 0)["mtp"]
    single = RetrievalTask(encoder, config, captions=4).eval()
    single.load_state_dict(task.state_dict())
    beside_longer = single({key: value[[1, 2]] for key, value in batch.items()}, 0)["mtp"]
    only_longer = single({key: value[[2, 2]] for key, value in batch.items()}, 0)["mtp"]
    short, long = (int((batch["ids"][row] > 0).sum()) - 2 for row in (1, 2))
    mixed = (whole * short + only_longer * long) / (short + long)
    torch.testing.assert_close(beside_longer, mixed, atol=1e-5, rtol=0)


def test_heads_and_biases_get_their_own_rates_and_nothing_is_left_out(encoder):
    config = RetrievalConfig(name="random", id_weight=1.0, head_lr_factor=5.0, bias_lr_factor=2.0, decoder_depth=1)
    task = RetrievalTask(encoder, config, captions=4, identities=4)
    groups = task.parameter_groups(0.1)
    rate = {id(p): (group["lr"], group.get("weight_decay")) for group in groups for p in group["params"]}
    assert set(rate) == {id(p) for p in task.parameters() if p.requires_grad}
    assert rate[id(task.classifier.weight)] == (0.5, None)
    assert rate[id(task.classifier.bias)] == (0.5, 0.0)
    assert rate[id(task.decoder.blocks[0].linear1.bias)] == (0.2, 0.0)  # the two factors are not multiplied
    assert rate[id(task.decoder.blocks[0].norm1.weight)] == (0.5, 0.0)
    assert rate[id(encoder.clip.ln_final.weight)] == (0.1, 0.0)
    assert rate[id(encoder.clip.text_projection)] == (0.1, None)
    assert id(encoder.clip.logit_scale) not in rate


def test_contradictory_settings_are_refused(encoder):
    with pytest.raises(ParameterError, match="name = 'simclr': input should be 'gadms', 'random', 'unmasked', 'nam'"):
        RetrievalConfig(name="simclr")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="number of identities"):
        RetrievalTask(encoder, RetrievalConfig(id_weight=1.0), captions=4)


CROPS = AugmentationConfig(flip=0.5, pad=2, erase=0.5)


def make_batches(encoder, captions, pixels, **keywords):
    raw = (pixels * 40 + 128).clamp(0, 255).to(torch.uint8)
    return CaptionBatches(encoder, captions, range(4), range(4), lambda rows: raw[list(rows)], seed=1, **keywords)


def test_batches_visit_every_caption_once_an_epoch_and_are_cut_by_rank(encoder, captions, pixels):
    whole = make_batches(encoder, captions * 1, pixels, batch_size=2, augmentation=CROPS)
    for epoch in range(3):
        seen = torch.cat([whole(2 * epoch + part)["caption_index"] for part in range(2)])
        assert seen.sort().values.tolist() == [0, 1, 2, 3]
    for rank in range(2):
        part = make_batches(encoder, captions, pixels, batch_size=2, augmentation=CROPS, rank=rank, world_size=2)
        assert torch.equal(part(5)["pixels"], whole(5)["pixels"][rank : rank + 1])
    with pytest.raises(ParameterError, match="multiple of the 3 workers"):
        make_batches(encoder, captions, pixels, batch_size=2, world_size=3)


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(config, tokenizer, captions, pixels, tmp_path):
    def train(folder, steps_until_death):
        encoder = DualEncoder.create(config, tokenizer=tokenizer, seed=3)
        task = RetrievalTask(encoder, RetrievalConfig(decoder_depth=1, warmup_steps=2), captions=4)
        batches = make_batches(encoder, captions, pixels, batch_size=2)

        def fragile(step):
            if step == steps_until_death:
                raise KeyboardInterrupt
            return batches(step)

        loop = LoopConfig(steps=8, learning_rate=1e-3, checkpoint_every=3)
        fit(task, fragile, loop, LocalContext(folder=folder))
        return task.state_dict()

    undisturbed = train(tmp_path / "a", None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", 7)
    resumed = train(tmp_path / "b", None)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


SENTENCES = ["a red coat", "a man in blue jeans with a bag", "green", "yellow hat and white shoes"]
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [16, 8], "layers": 1, "width": 24, "head_width": 24, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}
LOOP = LoopConfig(steps=3, learning_rate=1e-2, epsilon=1e-3, clip_norm=0.0)


TRAINED = {
    "gadms": RetrievalConfig(id_weight=1.0, mtp_weight=1.0, decoder_depth=1, warmup_steps=1, temperature=0.2),
    "irra": RetrievalConfig(name="irra", decoder_depth=1, temperature=0.2),
    "nam": RetrievalConfig(name="nam", temperature=0.2),
    "tal": RetrievalConfig(name="tal", temperature=0.2, tal_margin=0.5),
}


def train_tiny(rank: int, world_size: int, config: RetrievalConfig) -> dict[str, torch.Tensor]:
    encoder = DualEncoder.create(CONFIG, tokenizer=CaptionTokenizer.from_corpus(SENTENCES))
    task = RetrievalTask(encoder, config, captions=4, identities=4)
    pixels = torch.randint(0, 256, (4, 3, 16, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batches = CaptionBatches(
        *(encoder, SENTENCES, range(4), [0, 1, 1, 2], lambda rows: pixels[list(rows)]),
        batch_size=4,
        seed=0,
        rank=rank,
        world_size=world_size,
        augmentation=AugmentationConfig(pad=1),
        wrong_words=[(), (1,), (), ()],
    )
    context = LocalContext()
    context.rank, context.world_size = rank, world_size
    fit(task, batches, LOOP, context, decay="constant")
    return task.state_dict()


def train_all(rank: int, world_size: int) -> dict[str, dict[str, torch.Tensor]]:
    return {name: train_tiny(rank, world_size, config) for name, config in TRAINED.items()}


def test_two_processes_train_every_method_as_one_with_the_whole_batch(warm_address):
    by_rank = in_two_processes(train_all, warm_address)
    for method, config in TRAINED.items():
        for name, tensor in train_tiny(0, 1, config).items():
            for states in by_rank:
                torch.testing.assert_close(states[method][name], tensor, atol=2e-5, rtol=0, msg=f"{method}: {name}")
