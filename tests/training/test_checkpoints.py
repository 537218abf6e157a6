"""Checkpoints under torn writes, flipped bits and full disks."""

import errno

import pytest
import torch

from components.training.checkpoint import CHECKPOINT_MANIFEST, STATE, CheckpointStore


def state(value):
    return {"weights": {"a": torch.full((5,), float(value))}, "list": [torch.arange(3)], "count": value}


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(state(1), 10)
    store.save(state(2), 20)
    return store


def newest(store):
    return store.folder / "step-00000020"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_was_saved_is_loaded(store):
    step, loaded = store.load()
    assert step == 20
    torch.testing.assert_close(loaded, state(2))


def test_there_is_nothing_to_load_before_the_first_save(tmp_path):
    assert CheckpointStore(tmp_path / "none").load() is None


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.unlink()], ids=["torn", "flipped", "gone"])
@pytest.mark.parametrize("file", [STATE, CHECKPOINT_MANIFEST])
def test_a_damaged_newest_checkpoint_costs_one_interval(store, damage, file, caplog):
    damage(newest(store) / file)
    step, loaded = store.load()
    assert (step, loaded["count"]) == (10, 1)
    assert "step-00000020" in caplog.text


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(store):
    truncate(newest(store) / STATE)
    store.save(state(3), 20)
    assert store.load()[1]["count"] == 3


def test_only_the_newest_two_stay(store):
    store.save(state(3), 30)
    assert store.steps() == [20, 30]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_earlier_ones_and_no_rubbish(store, monkeypatch, failure):
    def half_a_write(value, file):
        file.write(b"half")
        raise failure

    monkeypatch.setattr(torch, "save", half_a_write)
    with pytest.raises(type(failure)):
        store.save(state(3), 30)
    assert store.steps() == [10, 20]
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000010", "step-00000020"]
    assert store.load()[0] == 20


def test_what_a_kill_in_mid_write_leaves_is_not_taken_for_a_checkpoint(store):
    (store.folder / ".writing-30").mkdir()
    (store.folder / ".writing-30" / STATE).write_bytes(b"half")
    assert store.load()[0] == 20
    store.save(state(3), 30)
    assert store.load()[0] == 30
    assert not (store.folder / ".writing-30").exists()
