"""Two hosts on this machine: network namespaces with an address each, which reach each other and nothing else."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

INTERFACE = "pair"
"""The network interface of each host."""


@dataclass(frozen=True)
class Host:
    namespace: str
    address: str

    def command(self, *words: str | Path) -> list[str]:
        """`words`, to be run on this host. Its files and processes are this machine's."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *map(str, words)]

    def processes(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        return [int(number) for number in listed.stdout.split()]

    def end_processes(self) -> None:
        """Kills whatever still runs on this host."""
        for number in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def skip_without(programs: dict[str, str]) -> None:
    """Skips, naming the Debian packages to install, unless these programs (name -> package) are there and this is root."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes network namespaces and starts system services")
    missing = sorted({package for name, package in programs.items() if not shutil.which(name)})
    if missing:
        pytest.skip(f"not installed: apt-get install --no-install-recommends {' '.join(missing)}")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Skips where the machine refuses namespaces, with its reason."""
    skip_without({"ip": "iproute2", "nsenter": "util-linux"})
    first, second = (Host(f"infra-{os.getpid()}-{number}", f"10.77.0.{number}") for number in (1, 2))
    try:
        for host in (first, second):
            _ip("netns", "add", host.namespace)
        ends = [["name", INTERFACE, "netns", host.namespace] for host in (first, second)]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in (first, second):
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            for device in ("lo", INTERFACE):
                _ip("-n", host.namespace, "link", "set", device, "up")
            # Leads nowhere, but by it Ray finds out which address is its own.
            _ip("-n", host.namespace, "route", "add", "default", "dev", INTERFACE)
        yield first, second
    finally:
        for host in (first, second):
            if Path("/run/netns", host.namespace).exists():
                host.end_processes()
                subprocess.run(["ip", "netns", "delete", host.namespace], check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine refuses `ip {' '.join(words)}`: {done.stderr.strip()}")
