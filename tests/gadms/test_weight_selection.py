"""The weights that are kept are those that found most on the validation split, also after a kill."""

import copy

import pytest
import torch

from components.errors import DataError, ParameterError
from components.gadms.batches import CaptionBatches
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.selection import BestWeights, PeriodicValidation
from components.gadms.tasks import RetrievalTask
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit


@pytest.fixture
def raw(pixels):
    return (pixels * 40 + 128).clamp(0, 255).to(torch.uint8)


def validation(encoder, captions, raw, **changes):
    settings = {"every": 2, "steps": 6, **changes}
    best = BestWeights(encoder)
    return PeriodicValidation(
        encoder, best, captions, [0, 1, 2, 3], [5, 6, 7, 7], lambda rows: raw[list(rows)], **settings
    )


def test_recall_is_that_of_captions_searching_all_validation_pictures(encoder, captions, raw):
    check = validation(encoder, captions, raw)
    with torch.no_grad():
        texts = torch.nn.functional.normalize(encoder.encode_text(encoder.tokenizer(captions))[0], dim=-1)
        images = torch.nn.functional.normalize(encoder.encode_image(encoder.normalize_pixels(raw))[0], dim=-1)
    identities = torch.tensor([5, 6, 7, 7])
    right = identities[(texts @ images.T).argmax(1)] == identities
    assert check(2)["val/R@1"] == pytest.approx(100 * right.float().mean().item())
    assert set(check(2)) == {"val/R@1", "val/mAP", "val/tied_share"}


def test_weights_of_a_dead_tower_are_at_chance_and_do_not_replace_better_ones(encoder, captions, raw):
    encoder = copy.deepcopy(encoder)
    check = validation(encoder, captions, raw)
    assert check(2)["val/tied_share"] == 0
    check.best.update_if_better(40.0, 3)
    encoder.clip.visual.proj.data.zero_()  # all pictures get one vector
    dead = check(4)
    assert dead["val/R@1"] == pytest.approx(100 * (1 + 1 + 2 + 2) / 4 / 4)  # of four pictures, two of one person
    assert dead["val/tied_share"] == 100
    assert check.best.step == 3


def test_it_looks_every_so_many_steps_and_after_the_last(encoder, captions, raw):
    check = validation(encoder, captions, raw, every=4)
    assert [step for step in range(1, 7) if check(step)] == [4, 6]


def test_the_first_of_the_best_weights_is_kept(encoder):
    best, first = BestWeights(encoder), {}
    for step, score in ((1, 10.0), (2, 30.0), (3, 30.0), (4, 20.0)):
        with torch.no_grad():
            encoder.clip.text_projection.fill_(step)
        best.update_if_better(score, step)
        first[step] = score
    best.restore()
    assert (best.step, best.score) == (2, 30)
    assert (encoder.clip.text_projection == 2).all()


def test_without_a_validation_there_is_nothing_to_restore(encoder):
    with pytest.raises(ParameterError, match="validate_every"):
        BestWeights(encoder).restore()
    with pytest.raises(DataError, match="val split"):
        PeriodicValidation(encoder, BestWeights(encoder), [], [], [], lambda rows: rows, every=1, steps=1)


def test_a_killed_run_keeps_the_same_best_weights_as_an_undisturbed_one(config, tokenizer, captions, raw, tmp_path):
    scripted = {2: 1.0, 4: 3.0, 6: 2.0, 8: 0.0}

    def train(folder, death):
        seen = {}
        encoder = DualEncoder.create(config, tokenizer=tokenizer, seed=3)
        settings = RetrievalConfig(decoder_depth=1, warmup_steps=2)
        task = RetrievalTask(encoder, settings, captions=4, keep_best=True)
        batches = CaptionBatches(
            encoder, captions, range(4), range(4), lambda rows: raw[list(rows)], batch_size=2, seed=1
        )

        def fragile(step):
            if step == death:
                raise KeyboardInterrupt
            return batches(step)

        def look(step):
            task.best.update_if_better(scripted[step], step)
            seen[step] = task.decoder.vocabulary.weight.clone()
            return {}

        loop = LoopConfig(steps=8, learning_rate=1e-3, report_every=2, checkpoint_every=3)
        fit(task, fragile, loop, LocalContext(folder=folder), on_report=look)
        last = encoder.clip.text_projection.clone()
        task.save(folder / "model")
        saved = DualEncoder.load(folder / "model")
        assert task.best.step == 4
        assert not torch.equal(encoder.clip.text_projection, last)
        assert torch.equal(saved.decoder_weights["vocabulary.weight"], seen.get(4, task.decoder.vocabulary.weight))
        assert not torch.equal(saved.decoder_weights["vocabulary.weight"], seen[8])
        return {**saved.state_dict(), **saved.decoder_weights}

    undisturbed = train(tmp_path / "a", None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", 7)  # the best was at step 4; the checkpoint that is gone on from is of step 6
    resumed = train(tmp_path / "b", None)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
