"""Reading ahead: the same values, one step ahead of their use, and no thread left behind."""

import threading
import time

import pytest
import torch

from components.training.prefetch import Prefetch
from components.training.randomness import ShuffledEpochs


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_values_are_those_of_the_steps_in_any_order():
    with Prefetch(lambda step: step**2, steps=40, threads=3) as ahead:
        for step in (0, 1, 2, 30, 31, 3, 4, 4, 39, 38, 39, 0):
            assert ahead(step) == step**2
    assert not readers()
    assert ahead(5) == 25  # starts again
    ahead.close()
    assert not readers()


def test_the_next_steps_are_read_while_one_is_used_and_none_after_the_last():
    read, ready = [], threading.Event()

    def note(step):
        read.append(step)
        if len(read) == 3:
            ready.set()
        return step

    with Prefetch(note, steps=4, threads=2) as ahead:
        assert ahead(0) == 0
        assert ready.wait(10)  # steps 1 and 2, that nobody has asked for
        assert sorted(read) == [0, 1, 2]
        assert [ahead(step) for step in (1, 2, 3)] == [1, 2, 3]
    assert sorted(read) == [0, 1, 2, 3]


def test_an_error_belongs_to_its_step_and_ends_nothing_else():
    def read(step):
        if step == 2:
            raise ValueError("step 2 is broken")
        return step

    with Prefetch(read, threads=2) as ahead:
        assert [ahead(0), ahead(1)] == [0, 1]
        with pytest.raises(ValueError, match="step 2 is broken"):
            ahead(2)
        assert ahead(3) == 3


def test_leaving_with_an_error_ends_the_threads():
    def use(step):
        with Prefetch(lambda step: time.sleep(0.01), threads=4) as ahead:
            ahead(step)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use(0)
    assert not readers()


def test_shuffled_epochs_are_the_same_from_many_threads():
    alone = ShuffledEpochs(7, 3, "epoch")
    expected = [alone.rows(torch.arange(10 * step, 10 * step + 10)) for step in range(60)]
    shared = ShuffledEpochs(7, 3, "epoch")
    with Prefetch(lambda step: shared.rows(torch.arange(10 * step, 10 * step + 10)), steps=60, threads=8) as ahead:
        assert all(torch.equal(ahead(step), expected[step]) for step in range(60))
