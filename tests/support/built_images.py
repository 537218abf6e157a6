"""Images built on this machine by buildah, on a disk of bounded size that goes with them."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from network_hosts import Host, skip_without

PROGRAMS = {"buildah": "buildah", "runc": "runc", "debootstrap": "debootstrap", "mkfs.btrfs": "btrfs-progs"}
DISK = 22
"""GB that images, containers and the build's temporary files may take: compressed, four times 5 GB while an image is written."""
SETTINGS = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_")
"""Beginnings of the variables by which this machine finds its package registries."""


class Builder:
    """buildah with everything that it keeps in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def command(self, verb: str, *words: str | Path) -> list[str]:
        storage = [f"--root={self.folder}/images", f"--runroot={self.folder}/run", "--storage-driver=overlay"]
        return ["buildah", *storage, verb, *map(str, words)]

    def environment(self) -> dict[str, str]:
        """runc, as Debian's crun refuses machines that have both versions of control groups."""
        return {"BUILDAH_RUNTIME": "runc", **os.environ, "TMPDIR": str(self.temporary)}

    def __call__(self, verb: str, *words: str | Path, timeout: float = 7200) -> str:
        """Runs `buildah verb words` to its end and returns its output; what it says about the build is shown by `pytest -s`."""
        command = self.command(verb, *words)
        done = subprocess.run(command, env=self.environment(), stdout=subprocess.PIPE, text=True, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}"
        return done.stdout.strip()

    def start(self, container: str, *words: str, host: Host, output: Path) -> "subprocess.Popen[bytes]":
        """A program in a container, on a host's network."""
        network = f"--network=ns:/run/netns/{host.namespace}"
        with open(output, "wb") as file:
            command = self.command("run", network, container, "--", *words)
            return subprocess.Popen(command, env=self.environment(), stdout=file, stderr=file, start_new_session=True)

    def make_base(self, name: str, packages: str, suite: str) -> None:
        """An image of a Debian release with its own Python, under the name of the image that a Dockerfile begins with.

        It knows the way to the package registries that this machine knows, so that no file of the project has to.
        """
        container = self("from", "--name=base", "scratch")
        root = Path(self("mount", container))
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(root)]
        subprocess.run(command, check=True, timeout=7200)
        # The image of the name has `python`, and a pip that installs without a virtual environment.
        (root / "usr/bin/python").symlink_to("python3")
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        settings = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
        if bundle := settings.get("SSL_CERT_FILE"):
            inside = root / bundle.lstrip("/")
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle, inside)
        self("config", *(f"--env={name}={value}" for name, value in settings.items()), container)
        self("unmount", container)
        self("commit", "--rm", "--quiet", container, f"docker.io/library/{name}")

    def lend_cache(self, path: str) -> None:
        """This machine's uv cache, where it has one, is the build's cache at `path`: nothing is downloaded or kept twice."""
        cache = Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache" / "uv"))
        if cache.is_dir():
            lent = self.temporary / "buildah-cache" / path.lstrip("/")
            lent.mkdir(parents=True)
            subprocess.run(["mount", "--bind", str(cache), str(lent)], check=True)


@contextlib.contextmanager
def builder(folder: Path) -> Iterator[Builder]:
    """A builder in `folder`, which is empty; skips where programs, root or a loop device are missing."""
    skip_without(PROGRAMS)
    disk, mounted = folder / "disk", folder / "mounted"
    mounted.mkdir()
    try:
        with open(disk, "wb") as file:
            file.truncate(DISK * 10**9)
        subprocess.run(["mkfs.btrfs", "--quiet", str(disk)], check=True, stderr=subprocess.DEVNULL)
        done = subprocess.run(
            ["mount", "-o", "loop,compress=zstd:1", str(disk), str(mounted)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"this machine refuses a disk in a file: {done.stderr.strip()}")
        yield Builder(mounted)
    finally:
        # Lazily: also where a process still uses it, as the lent cache must not be in a folder that is deleted later.
        subprocess.run(["umount", "--recursive", "--lazy", str(mounted)], check=False)
        disk.unlink()
