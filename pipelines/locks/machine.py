"""What tells one machine from another, and a container from its host.

A host's name does not: containers share one, and machines from one image do. `/etc/machine-id` outlives a reboot, but a container
has none of its own. So outside a container that id counts, and in one the running kernel and the container's process numbers.
"""

import hashlib
import os
import platform
import socket
import uuid
from pathlib import Path

HOST_PROCESSES = "pid:[4026531836]"
"""The process numbers of a kernel's own system, outside any container (PROC_PID_INIT_INO in Linux)."""
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
MACHINE_FILE = Path("/etc/machine-id")


def machine_id() -> str:
    """Return an id of the running kernel: two hosts may share a name, and two containers share a kernel."""
    return _text(BOOT_FILE) or f"{platform.node()}-{uuid.getnode()}"


def process_numbers() -> str:
    """Return an id of the process numbers in use: those of the host, or of one container."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return "pid"


def visible_from() -> str:
    """Return an id of the kernel and the process numbers: processes with the same one see each other."""
    return f"{machine_id()} {process_numbers()}"


def installation() -> str | None:
    """Return an id of this machine that outlives a reboot; None in a container, or where the system has no such id."""
    known = _text(MACHINE_FILE) if process_numbers() == HOST_PROCESSES else ""
    if not known:
        return None
    # systemd asks that the id itself is not shown.
    return hashlib.sha256(f"{known} {socket.gethostname()}".encode()).hexdigest()[:32]


def place() -> str:
    """Return an id of what sees the same files as this process: the machine, or one container as long as it lives."""
    return installation() or f"{socket.gethostname()} {visible_from()}"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
