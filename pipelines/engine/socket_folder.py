"""The folder for Unix sockets, whose paths the system limits to some hundred bytes."""

import os
import tempfile

LONGEST = 103
"""Bytes of a socket's path: 107 on Linux, 103 on macOS."""
SHORT = "/tmp"


def socket_folder(below: int) -> str:
    """Return the temporary folder, or /tmp where `below` bytes more would be too long (a TMPDIR of Slurm or of a CI system)."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) + below <= LONGEST else SHORT
