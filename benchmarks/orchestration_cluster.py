"""The scheduler on a Ray cluster of four nodes on this machine: how near it comes to the shortest possible time.

    python benchmarks/orchestration_cluster.py [--scale 25] [--workers 2] [--cpus 2] [--home FOLDER] [--json FILE]

The real graph with the real scheduler and places; each stage waits for the time that it took here before (manifests below the
scratch root `--home`), divided by `--scale`. A heavy stage waits on the cluster with what it reserves there: a training in a
placement group of `--workers` bundles, as Ray Train has it, any other in one. Light stages wait here. The cluster has four nodes of
`--cpus` CPUs each, fewer than there are stages. No schedule can be shorter than the longest path, or than the work on the cluster
divided by its bundles. Takes about two minutes.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.engine.ray_cluster import set_ray_defaults
from pipelines.graph import StageRun, all_runs
from pipelines.identity.closure import ROOT
from pipelines.jobs.dashboard import Node
from pipelines.params import Parameters, load
from pipelines.scheduling.cluster_places import ClusterPlaces
from pipelines.scheduling.durations import Durations
from pipelines.scheduling.needs import Decision, Need
from pipelines.scheduling.plan import Plan, expected_time
from pipelines.scheduling.scheduler import run_plan
from pipelines.workspace import Workspace

NODES = 4
NO_LOG = Path("/dev/null")


class RayCluster:
    """The cluster that this process has joined, as `pipelines.jobs.dashboard.Cluster` shows one."""

    address = "of this benchmark"

    def nodes(self) -> list[Node]:
        import ray

        return [
            Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]
        ]

    def grows(self) -> bool:
        return False


@dataclass
class Waiting:
    """A stage that waits: here, until a time, or on the cluster."""

    until: float = 0.0
    tasks: Sequence[Any] = ()
    group: Any = None
    log: Path = NO_LOG
    submitted: float = field(default_factory=time.time)
    waited: float = 0.0
    """Seconds from the submission until it had what it reserves."""

    def poll(self) -> int | None:
        import ray
        from ray.util import remove_placement_group

        if not self.tasks:
            return 0 if time.monotonic() >= self.until else None
        if len(ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)[0]) < len(self.tasks):
            return None
        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None
        self.waited = max(ray.get(list(self.tasks))) - self.submitted
        return 0

    def reason(self) -> str:
        return ""

    def stop(self) -> None: ...

    def interrupt(self) -> None: ...

    def kill(self) -> None: ...


def wait(seconds: float) -> float:
    """Wait, as a Ray task, and return when it began (seconds since the epoch)."""
    began = time.time()
    time.sleep(seconds)
    return began


class WaitingStarter:
    """Starts stages that wait for `seconds` of theirs, with the resources that `params` would reserve for them."""

    def __init__(self, params: Parameters, seconds: Mapping[str, float]) -> None:
        import ray

        self.compute = params.compute
        self.seconds = seconds
        self.started: list[Waiting] = []
        self.pause = ray.remote(wait)

    def start(self, run: StageRun, environment: Mapping[str, str]) -> Waiting:
        self.started.append(self._start(run))
        return self.started[-1]

    def _start(self, run: StageRun) -> Waiting:
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        seconds, cpus = self.seconds[run.address], self.compute.threads
        if not run.stage.heavy:
            return Waiting(time.monotonic() + seconds)
        if not (run.stage.trains and self.compute.workers):
            return Waiting(tasks=[self.pause.options(num_cpus=cpus).remote(seconds)])
        group = placement_group([{"CPU": cpus}] * self.compute.workers)
        tasks = [
            self.pause.options(
                num_cpus=cpus, scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)
            ).remote(seconds)
            for index in range(self.compute.workers)
        ]
        return Waiting(tasks=tasks, group=group)


class Nothing:
    """A repository in which every stage has to run, no signal comes, and nobody looks."""

    received = 0

    def decide(self, run: StageRun, *, force: bool = False) -> Decision:
        return Decision(Need.RUN)

    def put_in_place(self, run: StageRun, decision: Decision) -> bool:
        return False

    def before_run(self, run: StageRun) -> None: ...

    def record(self, runs: Sequence[StageRun]) -> Mapping[str, str]:
        return {}

    def interrupting(self) -> AbstractContextManager[None]:
        return nullcontext()


def shortest(plan: Plan, places: ClusterPlaces, bundles: int) -> dict[str, float]:
    """Return what no schedule can beat: the longest path, and the work on the cluster and here, each divided by its places."""
    heavy = sum(plan.expected(run) * places.bundles(run) for run in plan.runs if run.stage.heavy)
    light = sum(plan.expected(run) for run in plan.runs if not run.stage.heavy)
    return {
        "longest path": sum(map(plan.expected, plan.longest_path())),
        "work on the cluster / bundles": heavy / bundles,
        "work here / places": light / places.local.jobs,
    }


def started_cluster(cpus: int, tries: int = 3) -> Any:
    """Return a cluster of NODES nodes. Ray gives the processes of each 30 s to start, which is short on a busy machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=cpus, include_dashboard=False)
        return cluster
    except Exception:
        cluster.shutdown()
        if tries == 1:
            raise
        return started_cluster(cpus, tries - 1)


def measure(params: Parameters, seconds: Mapping[str, float], cpus: int) -> dict[str, Any]:
    """Run the graph on a new cluster; return the measured seconds beside the bounds."""
    set_ray_defaults()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # on loopback alone
    import ray

    cluster = started_cluster(cpus)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        cluster.wait_for_nodes()
        bundles = NODES * (cpus // params.compute.threads)
        warm = ray.remote(wait).options(num_cpus=params.compute.threads)
        ray.get([warm.remote(2.0) for _ in range(bundles)])  # starts a process on every bundle
        places = ClusterPlaces(params, connect=lambda address: RayCluster())
        plan = Plan(all_runs(), lambda run: seconds[run.address])
        nothing: Any = Nothing()
        view: Any = SimpleNamespace(**dict.fromkeys(("started", "ended", "waiting", "say"), lambda *given: None))
        starter = WaitingStarter(params, seconds)
        began = time.monotonic()
        summary = run_plan(plan, nothing, places, starter, view, nothing)
        took = time.monotonic() - began
        assert summary.exit_code == 0, summary
        bounds = shortest(plan, places, bundles)
        return {
            "stages": len(plan.runs),
            "bundles": bundles,
            "measured": took,
            "one after the other": sum(seconds.values()),
            "planned": expected_time(plan, places.fits),
            "longest wait for resources": max(stage.waited for stage in starter.started),
            "bounds": bounds,
            "near": max(bounds.values()) / took,
        }
    finally:
        ray.shutdown()
        cluster.shutdown()


def recorded_seconds(params: Parameters, home: Path) -> dict[str, float]:
    """Return the seconds of every stage run by address; ends the benchmark where one has not finished below `home`."""
    known = {run.address: Durations(home, params).known(run) for run in all_runs()}
    if missing := [address for address, seconds in known.items() if seconds is None]:
        raise SystemExit(
            f"{home}: no finished {', '.join(missing)}: run the pipeline first, or name its scratch root by --home"
        )
    return {address: seconds for address, seconds in known.items() if seconds is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scale", type=float, default=25.0, help="by which recorded seconds are divided")
    add("--workers", type=int, default=2, help="of every training")
    add("--cpus", type=int, default=2, help="of every node")
    add("--home", type=Path, default=Workspace.at(ROOT).home, help="scratch root with the manifests of a run")
    add("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    params = load(ROOT / "params.yaml")
    recorded = recorded_seconds(params, options.home)
    given = {"backend": "job", "storage": "/none", "workers": options.workers, "threads": 1, "device": "cpu"}
    params = params.model_copy(update={"compute": params.compute.model_copy(update=given)})
    found = measure(params, {name: seconds / options.scale for name, seconds in recorded.items()}, options.cpus)
    print(
        f"{found['stages']} stages, {found['bundles']} bundles on {NODES} nodes, trainings of {options.workers} workers"
    )
    for name in ("one after the other", "planned", "measured", "longest wait for resources"):
        print(f"{name:32}{found[name]:8.1f} s")
    for name, seconds in found["bounds"].items():
        print(f"at least: {name:22}{seconds:8.1f} s")
    print(f"{100 * found['near']:.0f} % of the bound")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
