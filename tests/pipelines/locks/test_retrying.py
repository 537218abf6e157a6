"""What is tried again, how often and for how long."""

import errno

import pytest
import torch
from PIL import UnidentifiedImageError

from components.errors import ParameterError
from pipelines.errors import InfrastructureError, exit_code
from pipelines.locks.retrying import ProcessLostError, RetryBudget, RetryPolicy, retry


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ProcessLostError("out of memory"), 75),
        (InfrastructureError("no server"), 75),
        (OSError(errno.EIO, "Input/output error"), 75),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 75),
        (MemoryError(), 75),
        (torch.OutOfMemoryError("CUDA out of memory"), 75),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), 75),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "weights.pt"), 1),
        (UnidentifiedImageError("cannot identify image file"), 1),
        (TypeError("a bug"), 1),
        (RuntimeError("a library's bug, say"), 1),
        (FloatingPointError("not finite"), 1),
        (ParameterError("steps = 0"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "data/raw"), 3),
    ],
)
def test_only_lost_storage_memory_and_connections_have_the_code_that_says_try_again(error, status):
    assert exit_code(error) == status


@pytest.mark.parametrize(
    ("status", "decisions"),
    [
        (75, ["AGAIN", "AGAIN", "LATER"]),
        (-9, ["AGAIN", "AGAIN", "LATER"]),
        (137, ["AGAIN", "AGAIN", "LATER"]),
        (130, ["LATER"]),
        (-15, ["LATER"]),
        (1, ["NEVER"]),
        (2, ["NEVER"]),
        (3, ["NEVER"]),
    ],
)
def test_the_policy_decides_from_the_status_alone(status, decisions):
    policy = RetryPolicy(retries=2)
    assert [policy.decide(status, failures).name for failures in range(1, len(decisions) + 1)] == decisions


def test_a_budget_raises_the_error_after_its_last_retry_and_a_mistake_or_bug_at_once():
    budget = RetryBudget(2)
    budget.spend(ProcessLostError("1"))
    budget.spend(ProcessLostError("2"))
    with pytest.raises(ProcessLostError, match="3"):
        budget.spend(ProcessLostError("3"))
    with pytest.raises(ParameterError):
        RetryBudget(2).spend(ParameterError("steps = 0"))
    with pytest.raises(TypeError):
        RetryBudget(2).spend(TypeError("a bug"))


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
