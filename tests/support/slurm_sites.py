"""A Slurm of two nodes on this machine, with Debian's slurmctld, slurmd and munged."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from network_hosts import INTERFACE, Host, skip_without, two_hosts
from processes import clean_environment, wait_until

PROGRAMS = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
CPUS = 2
"""Of each node, whatever the machine has."""
EARLIEST_RESTART = 15
"""Seconds between a job's requeue and its next start, which Slurm ties to the lifetime of credentials (120 by default)."""


class SlurmSite:
    """Commands are run on the first of the two hosts, where the controller is, too."""

    def __init__(self, folder: Path, hosts: tuple[Host, Host], programs: Path) -> None:
        self.folder = folder
        self.programs = programs
        self.hosts = hosts
        self.daemons: list[subprocess.Popen[bytes]] = []
        self._configure()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        self._start(
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={files['socket']}"),
            *(f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}"),
        )
        wait_until(files["socket"].exists, self.daemons[0])
        self._start("slurmctld", "-D")
        for number, host in enumerate(hosts, 1):
            self._start("slurmd", "-D", "-N", f"node{number}", host=host)
        wait_until(lambda: self.client("sinfo", "-h", "-o", "%t %D") == "idle 2", timeout=60, said=self.log)

    def _configure(self) -> None:
        """No cgroups, which a container may not have: processes are found by their parents."""
        folder, (first, second) = self.folder, self.hosts
        (folder / "state").mkdir()
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (folder / "slurm.conf").write_text(f"""
            ClusterName=test
            SlurmctldHost={socket.gethostname().partition(".")[0]}({first.address})
            SlurmUser=root
            AuthType=auth/munge
            CredType=cred/munge
            AuthInfo=socket={folder}/munge.socket,cred_expire={EARLIEST_RESTART}
            StateSaveLocation={folder}/state
            SlurmdSpoolDir={folder}/spool-%n
            SlurmctldPidFile={folder}/slurmctld.pid
            SlurmdPidFile={folder}/slurmd-%n.pid
            SlurmctldLogFile={folder}/slurmctld.log
            SlurmdLogFile={folder}/slurmd-%n.log
            ProctrackType=proctrack/linuxproc
            TaskPlugin=task/none
            MpiDefault=none
            ReturnToService=2
            SlurmdParameters=config_overrides
            SelectType=select/cons_tres
            SelectTypeParameters=CR_Core
            NodeName=node1 NodeAddr={first.address} CPUs={CPUS}
            NodeName=node2 NodeAddr={second.address} CPUs={CPUS}
            PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
            """)

    def _start(self, *words: str, host: Host | None = None) -> None:
        with open(self.folder / f"{len(self.daemons)}-{words[0]}.output", "wb") as output:
            command = (host or self.hosts[0]).command(*words)
            self.daemons.append(
                subprocess.Popen(command, env=self.environment(), stdout=output, stderr=output, start_new_session=True)
            )

    def environment(self) -> dict[str, str]:
        """Of daemons, commands and so of jobs, with the interface between the hosts."""
        return clean_environment(
            PATH=f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            SLURM_CONF=str(self.folder / "slurm.conf"),
            GLOO_SOCKET_IFNAME=INTERFACE,
            DVC_NO_ANALYTICS="1",
            OMP_WAIT_POLICY="PASSIVE",
        )

    def client(self, *words: str, cwd: Path | None = None, **environment: str) -> str:
        """What `sbatch`, `scontrol` or another of Slurm's commands prints; "" where it fails."""
        done = subprocess.run(
            self.hosts[0].command(*words),
            env={**self.environment(), **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            print(*words, done.stderr, file=sys.stderr)
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: `scontrol show job` as a dictionary."""
        words = self.client("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self) -> str:
        """The ends of the daemons' logs, for a test that fails."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("*.output")]
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-2000:]}" for path in sorted(paths))


class Job:
    """`sbatch pipeline.sbatch` in a folder that has it; Slurm writes what it prints to job.out there."""

    SIZES = ("--nodes=2", f"--cpus-per-task={CPUS}", "--gpus-per-node=0", "--time=60")

    def __init__(
        self,
        site: SlurmSite,
        folder: Path,
        *command: str,
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.site = site
        self.output = folder / "job.out"
        words = ["sbatch", "--parsable", f"--output={self.output}", *self.SIZES, *options]
        words += ["infra/slurm/pipeline.sbatch", *command]
        self.number = site.client(*words, cwd=folder, **(environment or {}))
        assert self.number, site.log()

    def facts(self) -> dict[str, str]:
        return self.site.job(self.number)

    def printed(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def starts(self) -> list[int]:
        """The steps from which its command began or went on."""
        return [int(step) for step in re.findall(r"resuming from step (\d+)", self.printed())]

    def limit(self, minutes: int) -> None:
        """Sets the time limit to so many minutes from the job's start. Slurm looks at limits every half minute."""
        self.site.client("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes}")

    def report(self) -> str:
        return f"{self.facts()}\n{self.printed()[-6000:]}\n{self.site.log()}"

    def wait(self, state: str) -> None:
        """Until the job has ended, in this state."""
        final = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        wait_until(lambda: self.facts().get("JobState") in final, timeout=900, said=self.report, pause=1)
        assert self.facts()["JobState"] == state, self.report()


@contextlib.contextmanager
def slurm_site(folder: Path, programs: Path = Path(sys.executable).parent) -> Iterator[SlurmSite]:
    """A site whose jobs find their programs in `programs`. Skips without Slurm or root.

    At the end, everything that it or its jobs started is killed.
    """
    skip_without(PROGRAMS)
    with two_hosts() as hosts:
        yield SlurmSite(folder, hosts, programs)
