"""Ray Tune: starts trials, several at once where they fit, and stops those that its scheduler rejects.

The search and the journal are ours (suggesting.py, journal.py). Tune's own snapshots are written now and then and hold pickles, so
a sweep does not resume from them: after a kill Tune starts again with the trials that had not ended, and the reports of those that
had are replayed to its scheduler in the same order. The trial function starts a process for the trial: it is ended as Ctrl-C ends a
stage, and with compute.workers above 0 it is a separate Ray driver, whose placement groups Ray removes when it has ended. So an
early stop cannot leak them, whether or not a dashboard runs.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.engine.ray_cluster import ray_session, set_ray_defaults, variables_to_join
from pipelines.errors import InfrastructureError
from pipelines.identity.closure import ROOT
from pipelines.sweeps.documents import value_at
from pipelines.sweeps.driver import Driver
from pipelines.sweeps.journal import WAITING, replay
from pipelines.sweeps.resources import computes_on_gpu, needs, require_gpu, slots
from pipelines.sweeps.spaces import Population, Scheduler
from pipelines.tracking.addresses import tracking_uri

WAITING_RESOURCES = {"node:__internal_head__": 0.001}
"""Resources of a trial function that only waits for Ray Train's workers, which need all the cores."""

CLUSTER = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Environment variables with the address to which stages are submitted as jobs."""


def set_tune_defaults() -> None:
    """Set Tune's environment variables, before its import. Values that are set already are kept."""
    set_ray_defaults()
    defaults = {
        "RAY_kill_child_processes_on_worker_exit": "0",  # a trial's process ends by itself, saving a checkpoint
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report of a failed trial has no metric
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command; the journal is complete
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # snapshots that nobody reads
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def run(driver: Driver, workers: int) -> None:
    """Run trials, at most `workers` at once, until the driver has no next one.

    Trials that lost their process, storage or memory are started again when the others have ended. Raises ParameterError when not
    even one fits, or a budget of GPU hours has no GPU; InfrastructureError when the cluster cannot be used or a trial has been lost
    too often.
    """
    set_tune_defaults()
    sweep, compute = driver.sweep, driver.sweep.params.compute
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri(sweep.workspace)  # trials on this machine inherit it
    cluster = {name: os.environ[name] for name in CLUSTER if name in os.environ}
    if compute.backend == "job":  # stages go to that cluster; the trials that wait for them stay here
        os.environ.pop("RAY_ADDRESS", None)
    with ray_session(compute):
        _run_trials(driver, workers, cluster)
        while driver.start_lost_trials_again():
            _run_trials(driver, workers, cluster)
    if driver.failure:
        raise driver.failure


def _run_trials(driver: Driver, workers: int, cluster: Mapping[str, str]) -> None:
    """Run trials on the Ray that has been started; `cluster` are the variables for stages that run as jobs."""
    import ray

    sweep, compute = driver.sweep, driver.sweep.params.compute
    if compute.backend == "local":
        cluster = variables_to_join() if compute.workers else {}
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)  # Tune misses files of its own, which nobody writes or reads
    storage = sweep.journal.root / "ray"
    try:
        _require_reachable(os.environ["MLFLOW_TRACKING_URI"])
        require_gpu(driver.limits.gpu_hours, compute)
        need = needs(compute, sweep.space.resources, computes_on_gpu(compute))
        fitting = slots(need, ray.cluster_resources(), workers)
        if fitting < workers:
            driver.progress.print(f"{workers} trials at once asked, {fitting} fit: the others wait")
        own = WAITING_RESOURCES if compute.workers or compute.backend == "job" else need
        _tuner(driver, own, cluster, fitting, str(storage)).fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def trial_events(task: str, environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Run a trial's process and yield its events (see trial.py). Closing the iterator ends the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.sweeps.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=dict(environment),
        text=True,
        start_new_session=True,
    )
    assert process.stdin
    assert process.stdout
    over = False
    try:
        process.stdin.write(task + "\n")
        process.stdin.flush()
        for line in process.stdout:
            event = json.loads(line)
            over = "ended" in event or "failed" in event
            yield event
        if not over:
            code = process.wait()
            yield {"failed": f"its process was ended (exit code {code})", "status": code}
    finally:
        process.stdin.close()
        process.wait()


def trial_function(config: dict[str, Any]) -> None:
    """The function that Tune calls, in a process of Ray."""
    from ray import tune

    for event in trial_events(config["task"], trial_environment(config["cluster"])):
        if "ended" in event:
            reports = event["ended"]["reports"]
            last = {"step": reports[-1][0], "value": reports[-1][1]} if reports else {}
            tune.report({"ended": json.dumps(event["ended"]), **last})
        else:
            tune.report(event)


def trial_environment(cluster: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without Ray's variables for its workers: a trial's driver is not one of them."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k.startswith(("RAY_AUTH", "RAY_TMPDIR"))}
    return {**kept, **cluster}


def scheduler_of(space_scheduler: Scheduler | Population | None, full: int) -> Any:
    """Return Tune's scheduler. For a population it stops nothing: trials end by themselves with their round."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    if not isinstance(space_scheduler, Scheduler):
        return FIFOScheduler()
    watched = {"time_attr": "step", "metric": "value", "mode": space_scheduler.mode}
    if space_scheduler.kind == "median":
        return MedianStoppingRule(grace_period=space_scheduler.grace, **watched)
    return AsyncHyperBandScheduler(
        max_t=full, grace_period=space_scheduler.grace, reduction_factor=space_scheduler.reduction, **watched
    )


class _EndedTrial:
    """A trial that ended before this call, with what a scheduler reads of a trial."""

    def __init__(self, number: int) -> None:
        self.trial_id = f"before-{number}"

    def get_live_trials(self) -> list[Any]:
        return []


def replay_reports(scheduler: Any, events: list[dict[str, Any]]) -> None:
    """Replay the reports of trials that have ended to a new scheduler, in their order."""
    trials = replay(events)
    known = {number: _EndedTrial(number) for number, trial in trials.items() if trial.state != WAITING}
    seen: set[tuple[int, int]] = set()
    added: set[int] = set()
    for event in events:
        number = event["number"]
        if event["event"] != "report" or number not in known or (number, event["step"]) in seen:
            continue
        seen.add((number, event["step"]))
        trial = known[number]
        if number not in added:
            added.add(number)
            scheduler.on_trial_add(trial, trial)
        scheduler.on_trial_result(trial, trial, {"step": event["step"], "value": event["value"]})


class _DriverReference:
    """The driver, for Tune's objects in this process. Tune pickles them into snapshots that nobody reads, without the driver."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def __reduce__(self) -> Any:
        return _DriverReference, (None,)


def _tuner(driver: Driver, own: Mapping[str, float], cluster: Mapping[str, str], workers: int, storage: str) -> Any:
    """Return the tuner, which takes its trials from the driver and reports to it."""
    from ray import tune
    from ray.tune import Callback, Stopper
    from ray.tune.search import Searcher

    sweep = driver.sweep
    reference = _DriverReference(driver)

    class Suggestions(Searcher):
        def suggest(self, trial_id: str) -> Any:
            trial = reference.driver.next_trial()
            if trial is None:
                return None if reference.driver.waits_for_round else Searcher.FINISHED
            return {"number": trial.number, "task": reference.driver.task(trial).to_json(), "cluster": dict(cluster)}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

    class Records(Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            number = trial.config["number"]
            if "ended" in result:
                reference.driver.finished(number, json.loads(result["ended"]))
            elif "failed" in result:
                reference.driver.failed(number, result["failed"], result["status"], result.get("traceback", ""))
            elif "value" in result:
                reference.driver.reported(number, result["step"], result["value"], result["seconds"])

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            number = trial.config["number"]
            if reference.driver.runs_now(number):
                reference.driver.stopped(number)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            number = trial.config["number"]
            if reference.driver.runs_now(number):
                lost = "Ray lost its process (out of memory, or its node is gone)"
                reference.driver.failed(number, lost, -signal.SIGKILL)

    class Deadline(Stopper):
        def __call__(self, trial_id: str, result: Any) -> bool:
            return False

        def stop_all(self) -> bool:
            return reference.driver.time_is_up()

    full = value_at(sweep.document, sweep.space.scheduler.full) if sweep.space.scheduler else 0
    scheduler = scheduler_of(sweep.space.scheduler, full)
    if isinstance(sweep.space.scheduler, Scheduler):
        replay_reports(scheduler, sweep.journal.events())
    return tune.Tuner(
        tune.with_resources(trial_function, dict(own)),
        tune_config=tune.TuneConfig(
            search_alg=Suggestions(),
            scheduler=scheduler,
            num_samples=driver.limits.samples,
            max_concurrent_trials=workers,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=storage,
            callbacks=[Records()],
            stop=Deadline(),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )


def _require_reachable(uri: str) -> None:
    """Refuse a SQLite file on a cluster of several nodes: trials on the others could not write their runs."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and uri.startswith("sqlite:"):
        raise InfrastructureError(
            f"the cluster has {len(nodes)} nodes and {uri} is a file: set MLFLOW_TRACKING_URI to a server that all of them reach"
        )
