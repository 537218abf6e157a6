import math

import numpy as np
import pytest
import torch

from components.errors import DataError, ParameterError
from components.evaluation.probe.accuracy import balanced_accuracy, evaluate_probe
from components.evaluation.probe.model import MISSING, AttributeProbe
from components.evaluation.probe.training import ProbeTask, probe_batches
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
ATTRIBUTES = {"upper": tuple(COLOURS), "lower": tuple(COLOURS)}


def two_halves(count: int, seed: int) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Pictures (N, 3, 16, 8) whose upper and lower halves have a colour each, and what they show; some lowers unstated."""
    random = np.random.default_rng(seed)
    pixels = torch.zeros(count, 3, 16, 8, dtype=torch.uint8)
    stated = []
    for row in range(count):
        upper, lower = random.choice(list(COLOURS), 2)
        pixels[row, :, :8] = torch.tensor(COLOURS[upper])[:, None, None]
        pixels[row, :, 8:] = torch.tensor(COLOURS[lower])[:, None, None]
        stated.append({"upper": upper, "lower": lower} if random.random() < 0.7 else {"upper": upper})
    return pixels, stated


def small_probe(**options) -> AttributeProbe:
    return AttributeProbe(ATTRIBUTES, height=16, width=8, channels=8, **options)


def test_a_probe_learns_which_half_has_which_colour():
    probe = small_probe()
    pixels, stated = two_halves(200, seed=0)
    batches = probe_batches(pixels, probe.labels(stated), batch_size=32, seed=0)
    fit(ProbeTask(probe, seed=0, jitter=1), batches, LoopConfig(steps=60, learning_rate=1e-2), LocalContext())
    held_out, truth = two_halves(100, seed=1)
    table = evaluate_probe(probe, held_out, probe.labels(truth))
    assert table["upper"]["balanced_accuracy"] > 95
    assert table["lower"]["balanced_accuracy"] > 95
    assert table["lower"]["pictures"] == sum("lower" in row for row in truth)
    assert table["upper"]["majority"] < 60


def test_an_error_while_predicting_leaves_the_probe_in_training():
    probe = small_probe().train()
    with pytest.raises(RuntimeError):
        probe.predict(torch.zeros(1, 4, 16, 8))  # four channels
    assert all(module.training for module in probe.modules())


def test_an_unstated_attribute_changes_neither_loss_nor_gradient():
    pixels, _ = two_halves(4, seed=0)
    task = ProbeTask(small_probe().eval(), seed=0)
    some = torch.tensor([[0, 1], [1, MISSING], [2, MISSING], [0, MISSING]])
    task({"pixels": pixels, "labels": some, "stated": torch.tensor([4, 1])}, 0)["loss"].backward()
    gradient = task.probe.flat["lower"].weight.grad.clone()
    # The same as a batch in which the other three pictures are not there at all, for the head of the lower half.
    scores = task.probe(task._augment(pixels, some, 0)[0])["lower"]
    task.zero_grad()
    smoothed = torch.nn.functional.cross_entropy(scores[:1], torch.tensor([1]))
    (smoothed / len(ATTRIBUTES)).backward()
    torch.testing.assert_close(gradient, task.probe.flat["lower"].weight.grad)


def test_a_batch_that_states_nothing_has_loss_zero():
    pixels, _ = two_halves(3, seed=0)
    nothing = {"labels": torch.full((3, 2), MISSING), "stated": torch.zeros(2, dtype=torch.long)}
    scalars = ProbeTask(small_probe(), seed=0)({"pixels": pixels, **nothing}, 0)
    assert scalars["loss"] == 0
    assert scalars["accuracy"] == 0


def test_two_ranks_see_the_augmentation_of_one_global_batch():
    pixels, stated = two_halves(6, seed=0)
    labels = small_probe().labels(stated)
    whole, _ = ProbeTask(small_probe(), seed=4, mirrored={})._augment(pixels, labels, 7)
    for rank in (0, 1):
        part = slice(3 * rank, 3 * rank + 3)
        task = ProbeTask(small_probe(), seed=4, mirrored={}, rank=rank, world_size=2)
        assert torch.equal(whole[part], task._augment(pixels[part], labels[part], 7)[0])


def test_the_mean_over_ranks_is_the_loss_of_the_global_batch_though_they_state_unequally_much():
    pixels, stated = two_halves(8, seed=3)
    labels = small_probe().labels(stated)
    scalars, gradients = [], []
    for ranks in (1, 2):
        tasks = [ProbeTask(small_probe().eval(), seed=4, rank=rank, world_size=ranks) for rank in range(ranks)]
        cut = {"batch_size": 8, "seed": 0, "world_size": ranks}
        batches = [probe_batches(pixels, labels, rank=rank, **cut)(0) for rank in range(ranks)]
        found = [task(batch, 0) for task, batch in zip(tasks, batches, strict=True)]
        sum(part["loss"] for part in found).backward()
        scalars.append({key: sum(part[key] for part in found) / ranks for key in found[0]})
        gradients.append(sum(task.probe.flat["lower"].weight.grad for task in tasks) / ranks)
    first, second = ((batch["labels"][:, 1] != MISSING).sum() for batch in batches)
    assert first != second
    torch.testing.assert_close(scalars[1], scalars[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_a_mirrored_picture_has_mirrored_labels():
    probe = AttributeProbe({"side": ("left", "right", "none"), "hat": ("no", "yes")}, height=16, width=8, channels=8)
    pixels = torch.zeros(64, 3, 16, 8)
    pixels[:, :, :, 0] = 1.0  # the mark is at the left edge
    labels = probe.labels([{"side": "left", "hat": "yes"}, {"side": "none"}] * 32)
    mirrored = {"side": {"left": "right", "right": "left"}}
    task = ProbeTask(probe, seed=0, jitter=0, noise=0.0, mirrored=mirrored)
    changed, truth = task._augment(pixels, labels, 0)
    flipped = changed[:, 0, 0, -1] == 1
    assert 10 < flipped.sum() < 54
    assert torch.equal(changed[~flipped], pixels[~flipped])
    assert torch.equal(truth[:, 0], torch.where(flipped & (labels[:, 0] == 0), 1, labels[:, 0]))
    assert torch.equal(truth[:, 1], labels[:, 1])
    unchanged, _ = ProbeTask(probe, seed=0, jitter=0, noise=0.0)._augment(pixels, labels, 0)
    assert torch.equal(unchanged, pixels)
    with pytest.raises(ParameterError, match="bag"):
        ProbeTask(probe, seed=0, mirrored={"bag": {}})


def test_an_epoch_of_batches_shows_every_picture_once_over_all_ranks():
    labels = torch.arange(24)[:, None]
    pixels = torch.zeros(24, 3, 2, 2)
    ranks = [probe_batches(pixels, labels, batch_size=8, seed=0, rank=r, world_size=2) for r in (0, 1)]
    seen = torch.cat([batch(step)["labels"] for step in range(3) for batch in ranks])
    assert sorted(seen.flatten().tolist()) == list(range(24))
    later = torch.cat([batch(step)["labels"] for step in range(3, 6) for batch in ranks])
    assert sorted(later.flatten().tolist()) == list(range(24))
    assert not torch.equal(seen, later)


def test_a_saved_probe_predicts_the_same_and_is_the_same_bytes_again(tmp_path):
    probe = small_probe(seed=3).eval()
    pixels, _ = two_halves(20, seed=0)
    probe.save(tmp_path / "a")
    loaded = AttributeProbe.load(tmp_path / "a")
    assert torch.equal(loaded.predict(pixels), probe.predict(pixels))
    loaded.save(tmp_path / "b")
    for name in ("probe.json", "probe.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_order_of_attributes_survives_saving(tmp_path):
    probe = AttributeProbe({"z": ("1", "2"), "a": ("x", "y")}, height=16, width=8, channels=8)
    probe.save(tmp_path)
    assert list(AttributeProbe.load(tmp_path).attributes) == ["z", "a"]


def test_pictures_of_another_size_are_resized():
    probe = small_probe().eval()
    assert probe.predict(torch.zeros(2, 3, 64, 32, dtype=torch.uint8)).shape == (2, 2)


def test_balanced_accuracy_is_the_mean_of_the_recalls():
    random = np.random.default_rng(0)
    truth, predicted = random.choice([0, 2, 5], 200, p=[0.8, 0.15, 0.05]), random.choice([0, 1, 2, 5], 200)
    recalls = []
    for value in (0, 2, 5):
        members = [i for i in range(200) if truth[i] == value]
        recalls.append(sum(predicted[i] == value for i in members) / len(members))
    assert math.isclose(balanced_accuracy(truth, predicted), sum(recalls) / 3)


def test_a_value_the_probe_does_not_know_is_refused_by_name():
    with pytest.raises(DataError, match="upper = 'mauve'"):
        small_probe().labels([{"upper": "mauve"}])


def test_an_attribute_with_one_value_cannot_be_probed():
    with pytest.raises(DataError, match="hat"):
        AttributeProbe({"hat": ("cap",)})


def test_a_missing_probe_is_reported_with_its_path(tmp_path):
    with pytest.raises(DataError, match="no attribute probe"):
        AttributeProbe.load(tmp_path)
