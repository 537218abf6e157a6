"""Timeouts from the environment."""

import pytest

from components.errors import ParameterError
from pipelines.locks.waiting import lock_timeout


@pytest.mark.parametrize(("text", "seconds"), [("", 86400), ("0", 0), ("1.5", 1.5), ("1e3", 1000)])
def test_a_number_of_seconds_is_taken(monkeypatch, text, seconds):
    monkeypatch.setenv("PIPELINES_LOCK_TIMEOUT", text)
    assert lock_timeout() == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "1e400", "10 min"])
def test_what_is_no_time_to_wait_is_one_line_that_names_the_variable(monkeypatch, text):
    monkeypatch.setenv("PIPELINES_LOCK_TIMEOUT", text)
    with pytest.raises(ParameterError, match=f"PIPELINES_LOCK_TIMEOUT = '{text}': must be a number of seconds"):
        lock_timeout()
