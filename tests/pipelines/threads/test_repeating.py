import threading

import pytest

from pipelines.threads.repeating import repeated


def test_a_call_is_repeated_beside_the_work_and_none_goes_on_after_it():
    called = threading.Semaphore(0)
    with repeated(called.release, 0.001):
        assert called.acquire(timeout=30)
        assert called.acquire(timeout=30)
    while called.acquire(blocking=False):
        pass
    assert not called.acquire(timeout=0.05)


def test_an_error_of_the_work_ends_the_repetition():
    before = threading.active_count()
    with pytest.raises(KeyError), repeated(lambda: None, 60):
        raise KeyError
    assert threading.active_count() == before
