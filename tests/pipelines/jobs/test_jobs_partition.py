"""A node that the network loses: it lives on, unreachable, in a network namespace of its own. Needs root and `ip`."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import output_of
from ray_clusters import LONG_BASE, SETTLED, RayCluster, as_job, losses, running, steps_in, trained_here

pytestmark = [
    pytest.mark.faults,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip"), reason="makes a network namespace: needs root and ip"
    ),
]

FAR, NEAR_END, FAR_END = (f"{name}-{os.getpid()}" for name in ("far", "near", "end"))
HERE, THERE = "10.77.13.1", "10.77.13.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class TwoHosts(RayCluster):
    """The head here, and a node in another network namespace, with a cable between them that can be cut."""

    def start(self) -> None:
        ip("netns", "add", FAR)
        ip("link", "add", NEAR_END, "type", "veth", "peer", "name", FAR_END, "netns", FAR)
        ip("addr", "add", f"{HERE}/24", "dev", NEAR_END)
        ip("link", "set", NEAR_END, "up")
        ip("-n", FAR, "addr", "add", f"{THERE}/24", "dev", FAR_END)
        for device in ("lo", FAR_END):
            ip("-n", FAR, "link", "set", device, "up")
        # Gloo listens where the host's name points to, which here is loopback.
        here, there = (("env", f"GLOO_SOCKET_IFNAME={interface}") for interface in (NEAR_END, FAR_END))
        self.host = HERE
        self.start_head(here)
        self.add_node(THERE, ("ip", "netns", "exec", FAR, *there))

    def cut(self) -> None:
        ip("link", "set", NEAR_END, "down")


@pytest.fixture
def two_hosts():
    folder = Path(os.path.realpath("/tmp")) / f"hosts-{os.getpid()}"  # sockets below it: its path must be short
    folder.mkdir()
    try:
        yield from running(folder, TwoHosts, RAY_health_check_timeout_ms="2000")  # in place of 10 s, five times
    finally:
        # The cable first: sockets that still wait for an answer would keep it, with the namespace.
        for words in (("link", "del", NEAR_END), ("netns", "del", FAR)):
            subprocess.run(["ip", *words], check=False, capture_output=True)


def test_a_node_that_the_network_loses_is_gone_on_without(
    with_people, two_hosts, tmp_path, waiting, drawn_people, place_at
):
    storage = tmp_path / "storage"
    storage.mkdir()
    alone = trained_here(place_at(tmp_path / "alone"), drawn_people, LONG_BASE, "base_model")
    place = as_job(with_people, two_hosts, storage, PIPELINES_COMPUTE__WORKERS="2", PIPELINES_COMPUTE__MIN_WORKERS="1")
    place.edit(LONG_BASE)
    process = place.start("base_model")
    try:
        waiting(lambda: steps_in(storage) >= SETTLED, process, timeout=300)
        two_hosts.cut()
    finally:
        out, errors = output_of(process)
    assert process.returncode == 0, errors + out
    assert "training with 2 worker(s) broke off" in out
    assert "starting again with 1 worker(s)" in out
    assert re.search(r"vae: resuming from step \d+ with 1 worker\(s\) in place of 2", two_hosts.printed_by_workers())
    assert losses(place, "base_model") == pytest.approx(losses(alone, "base_model"), rel=2e-3, abs=2e-4)
