"""What is tried again, how often and for how long."""

import pytest

from components.errors import ParameterError
from pipelines.errors import InfrastructureError
from pipelines.locks.retrying import ProcessLostError, RetryBudget, is_retryable, retry


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ProcessLostError("out of memory"), True),
        (RuntimeError("a library's bug, say"), True),
        (ParameterError("steps = 0"), False),
        (InfrastructureError("no server"), False),
        (FloatingPointError("not finite"), False),
    ],
)
def test_lost_processes_and_bugs_are_retried_and_a_users_mistake_is_not(error, expected):
    assert is_retryable(error) is expected


def test_a_budget_raises_the_error_after_its_last_retry_and_a_mistake_at_once():
    budget = RetryBudget(2)
    budget.spend(ProcessLostError("1"))
    budget.spend(ProcessLostError("2"))
    with pytest.raises(ProcessLostError, match="3"):
        budget.spend(ProcessLostError("3"))
    with pytest.raises(ParameterError):
        RetryBudget(2).spend(ParameterError("steps = 0"))


def test_a_call_is_repeated_while_its_server_is_away_and_a_wait_is_announced_once():
    answers, waits = [OSError("away"), OSError("still away"), "there"], []

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def is_os_error(error):
        return isinstance(error, OSError)

    assert retry(ask, timeout=60, away=is_os_error, on_wait=waits.append, pause=0.0) == "there"
    assert [str(error) for error in waits] == ["away"]


def test_a_call_that_fails_otherwise_or_for_too_long_raises_its_error():
    def fail():
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        retry(fail, timeout=0.0, away=lambda error: True)
    with pytest.raises(OSError, match="away"):
        retry(fail, timeout=60.0, away=lambda error: False)
