"""Submit a job, or find the one that runs already, and follow it to its end.

The submission id says what the job computes, so a second submitter, or the first one started again, follows the running job. After
a job that ended without a result, the next attempt gets the next number. A job survives a connection that is away for `patience`
seconds, and losing its processes (its node died, or the head came back without its jobs) `retries` times.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any

from pipelines.errors import INTERRUPTED, TRY_AGAIN, InfrastructureError, StageFailedError, one_line
from pipelines.jobs.dashboard import Cluster, ClusterAwayError, JobRequest
from pipelines.locks.retrying import ProcessLostError, RetryBudget, retry

POLL_SECONDS = 1.0
ATTEMPTS = 1000
LOST = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE", "JOB_SUPERVISOR_ACTOR_START_FAILURE")
"""How Ray calls the end of a job whose node is gone."""


@dataclass
class FollowedJob:
    """The job of `request` on `cluster`; `submission` is the id of the attempt that is followed, once there is one.

    `finished` returns whether the result is there: a job may succeed between the check for its result and the first poll.
    """

    cluster: Cluster
    request: JobRequest
    _: KW_ONLY
    patience: float
    retries: int
    finished: Callable[[], bool] = lambda: False
    quiet: bool = False
    submission: str | None = None
    _printed: int = 0

    def follow(self, each_poll: Callable[[], None] = lambda: None) -> None:
        """Return when the job has succeeded, calling `each_poll` meanwhile.

        Raises StageFailedError with the exit code of a job that failed (130 for one that was stopped), and InfrastructureError
        when the cluster stays away or the job is lost too often. Then the job may still run: it is followed next time.
        """
        budget = RetryBudget(self.retries)
        while True:
            self._attach()
            reason = self._to_the_end(each_poll)
            if reason is None:
                return
            lost = f"job {self.submission} is lost ({reason})"
            budget.spend(ProcessLostError(f"{lost}: run again to resume"))
            self._print(f"{lost}: submitting it again")

    def stop(self, seconds: float) -> None:
        """Stop the job, and wait for its end for at most `seconds`."""
        deadline = time.monotonic() + seconds
        if self.submission is None:
            return
        while time.monotonic() < deadline:
            with suppress(ClusterAwayError):
                self.cluster.stop(self.submission)
                info = self.cluster.info(self.submission)
                if info is None or info.status.is_terminal():
                    return
            time.sleep(0.5)
        self._print(f"job {self.submission} has not ended yet: `ray job stop {self.submission}`")

    def _attach(self) -> None:
        """Follow the running attempt, or start the next one."""
        for attempt in range(1, ATTEMPTS):
            submission = self.request.submission(attempt)
            info = self._retry(lambda submission=submission: self.cluster.info(submission))  # type: ignore[misc]
            ended = info is not None and info.status.is_terminal()
            if ended and not (info.status.value == "SUCCEEDED" and self.finished()):
                continue  # without a result, or with one that somebody has deleted since
            self.submission, self._printed = submission, 0  # before it is submitted, so that an interrupt stops it
            if info is None:
                self._retry(lambda attempt=attempt: self.cluster.submit(self.request, attempt))  # type: ignore[misc]
                self._print(f"job {submission} submitted to {self.cluster.address}")
            else:
                self._print(f"job {submission} runs on {self.cluster.address}: following it")
            return
        raise InfrastructureError(f"{ATTEMPTS} attempts at {self.request.key} have ended on {self.cluster.address}")

    def _to_the_end(self, each_poll: Callable[[], None]) -> str | None:
        """Follow the attempt; return None when it has succeeded, the reason when it is lost."""
        assert self.submission is not None
        while True:
            info = self._retry(lambda: self.cluster.info(str(self.submission)))
            self._print_log(final=info is not None and info.status.is_terminal())
            each_poll()
            if info is None:
                return "the cluster no longer knows it: its head was restarted"
            status = str(info.status.value)
            if status == "SUCCEEDED":
                return None
            if status == "STOPPED":
                self._print(f"job {self.submission} was stopped")
                raise StageFailedError(f"job {self.submission} was stopped", INTERRUPTED)
            if status == "FAILED":
                return self._failed(info)
            time.sleep(POLL_SECONDS)

    def _failed(self, info: Any) -> str:
        """Return why a failed job is lost; raises StageFailedError for one that failed by itself."""
        code: int | None = info.driver_exit_code
        kind = str(info.error_type or "").rsplit(".", 1)[-1]
        message = one_line(str(info.message), 240)
        if code is None and kind not in LOST:
            raise InfrastructureError(f"job {self.submission} could not be run: {message}")
        if code is None:
            return f"{kind.lower()}: {message[:120]}"
        if code < 0 or code > INTERRUPTED:
            return f"its process was ended by signal {-code if code < 0 else code - 128}"
        if code == INTERRUPTED:
            raise StageFailedError(f"job {self.submission} was interrupted", INTERRUPTED)
        raise StageFailedError(f"job {self.submission} failed", code or TRY_AGAIN)

    def _retry(self, ask: Callable[[], Any]) -> Any:
        """Return what `ask` returns once the cluster answers. Raises InfrastructureError after `patience` seconds."""

        def warn(error: Exception) -> None:
            self._print(f"warning: {self.cluster.address} does not answer; asking again for {self.patience:g} s")

        def is_away(error: Exception) -> bool:
            return isinstance(error, ClusterAwayError)

        try:
            return retry(ask, timeout=self.patience, away=is_away, on_wait=warn, pause=POLL_SECONDS)
        except ClusterAwayError as error:
            if self.submission is None:
                raise
            raise InfrastructureError(
                f"{error}; job {self.submission} may still run, and is followed when you run again"
            ) from error

    def _print_log(self, *, final: bool) -> None:
        """Print what the job has printed since the last time: whole lines, and at the end the rest. Missing logs are ignored."""
        if self.quiet:
            return
        try:
            text = self.cluster.logs(str(self.submission))
        except (RuntimeError, ValueError):
            return
        end = len(text) if final else text.rfind("\n") + 1
        if end > self._printed:
            sys.stdout.write(text[self._printed : end])
            sys.stdout.flush()
            self._printed = end

    def _print(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)
