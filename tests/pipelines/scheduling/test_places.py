"""How many stages run at once: on this machine, on its GPUs, and on a cluster, of which a second, naive model is made here."""

import os
import random
import stat

import pytest

from components.errors import ParameterError
from pipelines import graph, params
from pipelines.errors import InfrastructureError
from pipelines.identity.closure import ROOT
from pipelines.jobs.dashboard import ClusterAwayError, Node
from pipelines.scheduling import gpus, places
from pipelines.scheduling.cluster_places import LOOK_SECONDS, ClusterPlaces, places_for
from pipelines.scheduling.places import LocalPlaces

LIGHT, TRAINING, DRAWING, PARITY = map(
    graph.find, ("taca_evaluate@taca", "probe", "taca_generate@base", "train_parity@taca")
)
ARMS = [graph.find(f"gadms_pretrain@{arm}") for arm in graph.GADMS_ARMS[:3]]


@pytest.fixture(scope="module")
def chosen():
    return params.load(ROOT / "params.yaml", for_dvc=False)


@pytest.fixture(autouse=True)
def four_cores_and_no_cluster(monkeypatch):
    monkeypatch.setattr(places, "usable_cores", lambda: 4)
    monkeypatch.setattr(places, "usable_gpus", lambda: ())
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_SUBMISSION_ID"):
        monkeypatch.delenv(name, raising=False)


def with_compute(chosen, **changes):
    compute = chosen.compute.model_copy(update={"threads": 2, "device": "cpu", **changes})
    return chosen.model_copy(update={"compute": compute})


def how_many(where, runs) -> int:
    """Of `runs`, those that start at once."""
    running: list[graph.StageRun] = []
    for run in runs:
        if where.fits(run, running):
            running.append(run)
    return len(running)


# -- this machine ------------------------------------------------------------------------------------------------------


def test_as_many_stages_as_the_cores_hold_with_their_threads(chosen):
    everything = graph.all_runs()
    assert how_many(LocalPlaces(with_compute(chosen)), everything) == 2
    assert how_many(LocalPlaces(with_compute(chosen, threads=1)), everything) == 4
    assert how_many(LocalPlaces(with_compute(chosen, threads=3)), everything) == 1
    assert how_many(LocalPlaces(with_compute(chosen, threads=16)), everything) == 1
    assert how_many(LocalPlaces(with_compute(chosen), jobs=7), everything) == 7
    with pytest.raises(ParameterError, match="--jobs 0: must be at least 1"):
        LocalPlaces(with_compute(chosen), jobs=0)


def test_a_stage_counts_the_ray_workers_that_it_starts_and_any_stage_fits_alone(chosen):
    two_workers = LocalPlaces(with_compute(chosen, workers=2), jobs=3)
    assert two_workers.fits(TRAINING, [LIGHT])
    assert not two_workers.fits(TRAINING, [LIGHT, DRAWING])  # 2 + 1 + 1
    assert not two_workers.fits(ARMS[0], [TRAINING])
    assert LocalPlaces(with_compute(chosen, workers=8), jobs=1).fits(TRAINING, [])
    assert chosen.train_parity.workers == 2  # of one thread each, beside a driver that waits
    assert not LocalPlaces(with_compute(chosen, threads=1), jobs=2).fits(LIGHT, [PARITY])
    assert LocalPlaces(with_compute(chosen, threads=2), jobs=2).fits(LIGHT, [PARITY])


def test_workers_on_a_joined_cluster_take_nothing_here_and_are_there_one_group_at_a_time(chosen, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    where = LocalPlaces(with_compute(chosen, workers=8), jobs=3)
    assert where.fits(TRAINING, [LIGHT, DRAWING])
    assert not where.fits(ARMS[0], [TRAINING])
    assert not where.fits(PARITY, [TRAINING])
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")  # a dashboard cannot be joined
    assert not where.fits(TRAINING, [LIGHT])


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(places, "usable_gpus", lambda: ("GPU-a", "GPU-b", "MIG-c"))


@pytest.mark.usefixtures("three_gpus")
def test_every_gpu_is_given_to_one_stage_at_a_time(chosen):
    where = LocalPlaces(with_compute(chosen, threads=1, device="auto"), jobs=9)
    assert how_many(where, graph.all_runs()) == 3
    running: list[graph.StageRun] = []
    held: dict[str, str] = {}
    dice = random.Random(1)
    for run in graph.all_runs():
        while not where.fits(run, running):
            running.pop(dice.randrange(len(running)))
        held[run.address] = where.environment(run, running)["CUDA_VISIBLE_DEVICES"]
        running.append(run)
        now = [gpu for each in running for gpu in held[each.address].split(",")]
        assert len(now) == len(set(now)) <= 3
        assert all(now)
    assert how_many(LocalPlaces(with_compute(chosen, device="cpu"), jobs=9), ARMS) == 3
    assert LocalPlaces(with_compute(chosen, device="cpu")).environment(TRAINING, []) == {}


@pytest.mark.usefixtures("three_gpus")
def test_workers_have_a_gpu_each(chosen):
    where = LocalPlaces(with_compute(chosen, device="cuda", workers=2), jobs=9)
    assert where.environment(TRAINING, []) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    assert where.environment(LIGHT, [TRAINING]) == {"CUDA_VISIBLE_DEVICES": "MIG-c"}
    assert not where.fits(DRAWING, [TRAINING, LIGHT])
    assert where.environment(PARITY, [LIGHT]) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    many = LocalPlaces(with_compute(chosen, device="cuda", workers=5), jobs=9)
    assert many.environment(TRAINING, []) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,MIG-c"}


LISTED = """\
GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 (UUID: GPU-bbbb)
  MIG 3g.40gb     Device  0: (UUID: MIG-1111)
  MIG 3g.40gb     Device  1: (UUID: MIG-2222)
GPU 2: NVIDIA H200 (UUID: GPU-cccc)
"""


def test_gpus_are_those_of_the_driver_or_of_the_environments_choice(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.usable_gpus() == ("GPU-aaaa", "MIG-1111", "MIG-2222", "GPU-cccc")
    for text, names in (("1", ("1",)), ("2, 0", ("2", "0")), ("", ()), ("-1", ()), ("0,-1,1", ("0",))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert gpus.usable_gpus() == names, text
    program.write_text("#!/bin/sh\nexit 9\n")  # no driver
    assert gpus.usable_gpus() == ()
    monkeypatch.setattr(gpus.shutil, "which", lambda name: None)
    assert gpus.usable_gpus() == ()


# -- a cluster ---------------------------------------------------------------------------------------------------------


class FakeCluster:
    address = "http://head:8265"

    def __init__(self, *nodes: dict[str, float], grows: bool = False) -> None:
        self.totals, self.growing, self.away, self.looks = list(nodes), grows, False, 0

    def nodes(self) -> list[Node]:
        self.looks += 1
        if self.away:
            raise ClusterAwayError("no Ray cluster answers")
        return [Node(str(i), "10.0.0.1", total) for i, total in enumerate(self.totals)]

    def grows(self) -> bool:
        return self.growing


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def on(cluster, chosen, jobs=None, clock=None, **compute):
    given = {"backend": "job", "storage": "/shared", "threads": 1, **compute}
    return ClusterPlaces(with_compute(chosen, **given), jobs, lambda address: cluster, clock or Clock())


def test_the_backend_chooses_the_places_and_no_cluster_is_asked_before_a_stage_needs_it(chosen):
    assert isinstance(places_for(with_compute(chosen)), LocalPlaces)
    cluster = FakeCluster({"CPU": 4})
    where = on(cluster, chosen)
    assert where.fits(LIGHT, [])
    assert cluster.looks == 0
    assert isinstance(places_for(where.params, 3), ClusterPlaces)


def test_light_stages_run_here_beside_those_on_the_cluster(chosen):
    where = on(FakeCluster({"CPU": 1}), chosen, threads=1)
    assert where.fits(TRAINING, [LIGHT] * 4)
    assert not where.fits(DRAWING, [LIGHT, TRAINING])
    assert not where.fits(LIGHT, [LIGHT] * 4)  # four cores here
    assert where.fits(LIGHT, [TRAINING] * 9)


def test_a_stage_that_can_never_fit_is_refused_by_name_with_the_numbers(chosen):
    where = on(FakeCluster({"CPU": 3}, {"CPU": 4}), chosen, workers=4, threads=2)
    assert where.fits(DRAWING, [])
    with pytest.raises(InfrastructureError) as refused:
        where.fits(TRAINING, [DRAWING])
    assert str(refused.value).startswith(
        "probe: the cluster at http://head:8265 can never give 4 x (2 CPUs): it lacks CPUs, its nodes have 3 CPUs, 0 GPUs; 4 CPUs"
    )
    assert on(FakeCluster({"CPU": 3}, {"CPU": 4}), chosen, workers=4, min_workers=2, threads=2).fits(TRAINING, [])
    with pytest.raises(InfrastructureError, match="it lacks GPUs"):
        on(FakeCluster({"CPU": 9}), chosen, device="cuda").fits(TRAINING, [])


def test_a_group_that_may_be_smaller_is_counted_as_large_as_the_cluster_lets_it_be(chosen):
    where = on(FakeCluster({"CPU": 6}), chosen, workers=8, min_workers=3)  # which gives a group of 4
    assert where.fits(DRAWING, [ARMS[0], DRAWING])
    assert not where.fits(DRAWING, [ARMS[0], DRAWING, DRAWING])
    assert not where.fits(ARMS[1], [ARMS[0]])
    with pytest.raises(InfrastructureError, match=r"can never give 4 x \(1 CPUs\)"):  # 3 is no divisor of 8
        on(FakeCluster({"CPU": 3}), chosen, workers=8, min_workers=3).fits(TRAINING, [])


def test_jobs_bound_the_stages_on_the_cluster_too(chosen):
    assert how_many(on(FakeCluster({"CPU": 64}), chosen), ARMS) == 3
    assert how_many(on(FakeCluster({"CPU": 64}), chosen, jobs=2), ARMS) == 2


def test_the_job_that_schedules_is_counted(chosen, monkeypatch):
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "repro-0123-1")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    where = on(FakeCluster({"CPU": 4}), chosen, workers=2)
    assert where.fits(ARMS[0], [])
    assert not where.fits(ARMS[1], [ARMS[0]])  # 1 + 2 + 2
    assert not where.fits(PARITY, [ARMS[0]])  # whose workers join this cluster
    assert not where.fits(LIGHT, [LIGHT])  # it has reserved no more cores here
    assert how_many(LocalPlaces(where.params), graph.all_runs()) == 1
    assert where.fits(PARITY, [DRAWING])
    with pytest.raises(InfrastructureError, match=r"beside this job itself can never give 3 x"):
        on(FakeCluster({"CPU": 2}), chosen, workers=2).fits(ARMS[0], [])


def test_nodes_that_come_and_go_are_noticed(chosen):
    cluster, clock = FakeCluster({"CPU": 2}, {"CPU": 2}), Clock()
    where = on(cluster, chosen, clock=clock, workers=2)
    assert where.fits(ARMS[1], [ARMS[0]])
    del cluster.totals[1:]
    clock.now += LOOK_SECONDS / 2
    assert (where.fits(ARMS[1], [ARMS[0]]), cluster.looks) == (True, 1)  # it is not asked all the time
    clock.now += LOOK_SECONDS
    assert not where.fits(ARMS[1], [ARMS[0]])
    cluster.totals[:] = [{"CPU": 1}]
    clock.now += LOOK_SECONDS
    assert not where.fits(ARMS[1], [LIGHT])  # the node may come back while others run
    with pytest.raises(InfrastructureError, match="can never give 2 x"):
        where.fits(ARMS[1], [])
    cluster.totals[:] = [{"CPU": 1}] * 6
    clock.now += LOOK_SECONDS
    assert how_many(where, ARMS) == 3
    cluster.away = True
    clock.now += LOOK_SECONDS
    assert how_many(where, ARMS) == 3  # it does not answer at the moment: as it was
    with pytest.raises(ClusterAwayError):
        on(cluster, chosen).fits(TRAINING, [])


def test_a_cluster_that_grows_is_given_one_stage_more_than_it_holds(chosen):
    cluster = FakeCluster({"CPU": 0}, grows=True)  # a head alone
    where = on(cluster, chosen, workers=2)
    assert how_many(where, ARMS) == 1
    cluster.totals.append({"CPU": 3})
    where._looked = -LOOK_SECONDS
    assert how_many(where, ARMS) == 2


class NaiveCluster(FakeCluster):
    """Places every bundle on a node of its own choice; a stage that finds no room is a failure."""

    def __init__(self, dice, threads, gpus) -> None:
        nodes = [{"CPU": dice.randint(0, 6), **({"GPU": dice.randint(0, 3)} if gpus else {})} for _ in range(4)]
        super().__init__(*nodes)
        self.dice, self.size = dice, {"CPU": threads, **({"GPU": 1} if gpus else {})}
        self.free = [dict(node) for node in nodes]

    def room(self) -> list[dict[str, float]]:
        return [node for node in self.free if all(node.get(kind, 0) >= size for kind, size in self.size.items())]

    def holds(self, bundles: int) -> bool:
        """Whether there is room for so many: tried out."""
        before, taken = [dict(node) for node in self.free], [self.take() for _ in range(bundles)]
        self.free[:] = before
        return all(node is not None for node in taken)

    def take(self) -> int | None:
        room = self.room()
        if not room:
            return None
        index = self.free.index(self.dice.choice(room))
        for kind, size in self.size.items():
            self.free[index][kind] -= size
        return index

    def give_back(self, index: int) -> None:
        for kind, size in self.size.items():
            self.free[index][kind] += size


@pytest.mark.parametrize("seed", range(60))
def test_no_stage_waits_on_the_cluster_and_none_waits_here_that_has_room_there(chosen, seed):
    """The whole graph on random small clusters: every bundle is free when it is asked for, so nothing can block anything."""
    dice = random.Random(seed)
    workers, threads, gpus = dice.randint(0, 3), dice.randint(1, 2), dice.random() < 0.5
    cluster = NaiveCluster(dice, threads, gpus)
    where = on(cluster, chosen, workers=workers, threads=threads, device="auto")
    runs, made_by = graph.all_runs(), graph.producers()
    need = {run.address: (workers or 1) if run.stage.trains else 1 for run in runs if run.stage.heavy}
    if not cluster.holds(max(workers, 1)):
        with pytest.raises(InfrastructureError, match="can never give"):
            where.fits(TRAINING, [])
        return
    finished, running, most = set[str](), list[graph.StageRun](), 0
    placed: dict[str, list[int]] = {}
    while len(finished) < len(runs):
        here = {*finished, *(run.address for run in running)}
        ready = [
            run
            for run in runs
            if run.address not in here
            and all(made_by[path].address in finished for path in run.inputs.values() if path in made_by)
        ]
        dice.shuffle(ready)
        for run in ready:
            bundles = need.get(run.address, 0)
            if where.fits(run, running):
                placed[run.address] = [index for index in (cluster.take() for _ in range(bundles)) if index is not None]
                assert len(placed[run.address]) == bundles, f"{run.address} waits for its resources"
                running.append(run)
            elif bundles:
                assert not cluster.holds(bundles), f"{run.address} could run"
        most = max(most, len(running))
        ended = running.pop(dice.randrange(len(running)))
        finished.add(ended.address)
        for index in placed[ended.address]:
            cluster.give_back(index)
    assert most >= 1
