"""Threads of the processes that we start: they do not spin for long, and containers and affinity bound them."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines import presets
from pipelines.__main__ import main
from pipelines.engine.ray_cluster import set_ray_defaults
from pipelines.engine.warm import start_warm_process
from pipelines.identity.closure import ROOT
from pipelines.threads.cores import usable_cores, warn_of_too_many_threads
from pipelines.threads.settings import OPENMP_WAITING, thread_settings, waiting_settings

V1 = "30 25 0:26 {root} /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev - cgroup cgroup rw,cpu,cpuacct"
V1_SET = "31 25 0:27 / /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset"
V2 = "29 23 0:25 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = "32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
DISK = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
CPU = "sys/fs/cgroup/cpu,cpuacct"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes a machine of 64 cores: the lines of its two files in `proc`, and quotas by folder; returns its root."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)

    def write(groups: list[str], mounts: list[str], quotas: dict[str, str]) -> Path:
        for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("\n".join([*text, ""]))
        for folder, text in quotas.items():
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            if folder.startswith(CPU):
                quota, period = text.split()
                (tmp_path / folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
                (tmp_path / folder / "cpu.cfs_period_us").write_text(f"{period}\n")
            else:
                (tmp_path / folder / "cpu.max").write_text(f"{text}\n")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("group", "root", "quotas", "cores"),
    [
        ("/", "/", {"": "400000 100000"}, 4),
        ("/", "/", {"": "max 100000"}, 64),
        ("/", "/", {}, 64),  # the root group of a machine has no such file
        ("/", "/", {"": "350000 100000"}, 3),
        ("/", "/", {"": "50000 100000"}, 1),
        ("/", "/", {"": "300000 50000"}, 6),
        ("/pod/container", "/", {"pod": "200000 100000", "pod/container": "max 100000"}, 2),
        ("/pod/container", "/", {"pod": "max 100000", "pod/container": "800000 100000"}, 8),
        ("/pod/container", "/", {"": "100000 100000", "pod": "300000 100000", "pod/container": "200000 100000"}, 1),
        ("/pod/other", "/", {"pod": "max 100000", "pod/container": "100000 100000"}, 64),
        ("/docker/1a2b", "/docker/1a2b", {"": "500000 100000"}, 5),  # of the host's names, and mounted as the whole
        ("/docker/1a2b/job", "/docker/1a2b", {"": "500000 100000", "job": "200000 100000"}, 2),
        ("/../init.scope", "/", {"": "700000 100000"}, 7),
        ("/with:colon", "/", {"with:colon": "200000 100000"}, 2),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_least_quota_of_the_nested_groups_bounds_the_cores(machine, version, group, root, quotas, cores):
    if version == 1:
        groups = ["12:cpuset:/elsewhere", f"4:cpu,cpuacct:{group}", "1:name=systemd:/", "0::/"]
        quotas = {f"{CPU}/{below}".rstrip("/"): text.replace("max", "-1") for below, text in quotas.items()}
        mounts = [DISK, V1.format(root=root), V1_SET, HYBRID]
    else:
        groups, mounts = [f"0::{group}"], [DISK, V2.format(root=root)]
        quotas = {f"sys/fs/cgroup/{below}".rstrip("/"): text for below, text in quotas.items()}
    assert usable_cores(machine(groups, mounts, quotas)) == cores


def test_affinity_bounds_the_cores_too(machine, monkeypatch):
    root = machine(["0::/"], [V2.format(root="/")], {"sys/fs/cgroup": "800000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7})
    assert usable_cores(root) == 3
    assert usable_cores(root / "nowhere") == 3  # not Linux
    assert usable_cores(machine(["nonsense"], [DISK], {})) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_process_that_is_bound_to_one_core_has_one_and_is_warned(capfd):
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
        warn_of_too_many_threads(1)
        assert not capfd.readouterr().err
        warn_of_too_many_threads(2)
    finally:
        os.sched_setaffinity(0, before)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: 2 threads on 1 usable core ")
    assert "compute.threads" in line


def test_the_command_that_runs_the_pipeline_warns_once(tmp_path, monkeypatch, capfd):
    """Stages print their own warning to their logs."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    presets.edit(tmp_path / "params.yaml", {"compute": {"threads": 4096}})
    monkeypatch.chdir(tmp_path)
    assert main(["--workspace", str(tmp_path), "repro", "no-such-stage"]) == 2
    warning, refusal = capfd.readouterr().err.splitlines()
    assert warning.startswith("warning: 4096 threads on ")
    assert "no-such-stage" in refusal


@pytest.fixture
def nothing_chosen(monkeypatch):
    for name in (*OPENMP_WAITING, "OPENBLAS_THREAD_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the library that torch has on Linux")
def test_the_openmp_that_torch_loads_spins_briefly_and_a_users_choice_stays(nothing_chosen, monkeypatch):
    found = importlib.util.find_spec("torch")
    assert found
    assert found.origin
    library = Path(found.origin).parent / "lib" / "libgomp.so.1"
    load = [sys.executable, "-S", "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"]

    def of_library() -> dict[str, str]:
        environment = {"OMP_DISPLAY_ENV": "verbose", **thread_settings(2)}
        said = subprocess.run(load, env=environment, capture_output=True, text=True, check=True).stderr
        pairs = (line.split("]")[-1].split("=") for line in said.splitlines() if "=" in line)
        return {name.strip(): value.strip(" '") for name, value in pairs}

    ours = of_library()
    assert (ours["OMP_NUM_THREADS"], ours["OMP_WAIT_POLICY"], ours["GOMP_SPINCOUNT"]) == ("2", "PASSIVE", "1000")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    theirs = of_library()
    assert theirs["OMP_WAIT_POLICY"] == "ACTIVE"
    assert int(theirs["GOMP_SPINCOUNT"]) > 10**9


@pytest.mark.parametrize("name", [*OPENMP_WAITING, "OPENBLAS_THREAD_TIMEOUT"])
def test_what_a_user_set_replaces_ours_and_is_passed_on(nothing_chosen, monkeypatch, name):
    ours = waiting_settings()
    monkeypatch.setenv(name, "7")
    found = waiting_settings()
    assert found[name] == "7"
    if name in OPENMP_WAITING:
        assert [other for other in OPENMP_WAITING if other in found] == [name]
    monkeypatch.setattr(os, "environ", {**os.environ, **found})
    assert waiting_settings() == found  # in a process that a process of ours starts
    monkeypatch.setattr(os, "environ", ours)
    assert waiting_settings() == ours


def test_a_verb_and_what_it_starts_wait_so(nothing_chosen, tmp_path, capfd):
    assert main(["--workspace", str(tmp_path), "preset", "nothing"])
    assert waiting_settings().items() <= os.environ.items()
    assert "GOMP_SPINCOUNT" in os.environ


def test_rays_processes_on_this_machine_wait_so(nothing_chosen, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    set_ray_defaults()
    assert "GOMP_SPINCOUNT" in os.environ


def test_the_processes_whose_libraries_others_inherit_wait_so(nothing_chosen):
    address, descriptor = start_warm_process("workers", 2)
    (process,) = [child for child in psutil.Process().children() if address in child.cmdline()]
    try:
        assert thread_settings(2).items() <= process.environ().items()
    finally:
        os.close(descriptor)
        process.kill()
        process.wait()
