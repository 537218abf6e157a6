"""Who uses a scratch folder: `claims.json` in it names the checkouts, and the workspaces of trials, whose stages it belongs to.

Checkouts that share a scratch root differ in parameters and code, so that none can tell what another one needs. Each gives up its
own claims (`gc`), and a folder is free when no claim is left. A workspace that is deleted has given up all of its own.
"""

import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from components.files import write_atomically

CLAIMS_FILE = "claims.json"
ELSEWHERE_SECONDS = 30 * 86400.0
"""How long a claim of another machine counts, where nobody here can see whether its workspace is there."""


@dataclass(frozen=True)
class Claim:
    """A workspace that has used the folder; `time` is that of its last use, in seconds since 1970."""

    root: str
    host: str
    time: float

    def holds(self) -> bool:
        """Return whether the workspace may still be there."""
        there = (Path(self.root) / "params.yaml").is_file()
        return there or (self.host != socket.gethostname() and time.time() - self.time < ELSEWHERE_SECONDS)


def claims(folder: Path) -> list[Claim]:
    """Return the claims on a scratch folder; none without a file that can be read."""
    try:
        return [Claim(**known) for known in json.loads((folder / CLAIMS_FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def claim(folder: Path, root: Path) -> None:
    """Claim a scratch folder, whose lock this process holds, for the workspace at `root`."""
    mine = Claim(str(root), socket.gethostname(), time.time())
    _write(folder, [*_others(folder, root), mine])


def give_up(folder: Path, root: Path) -> None:
    """Remove the claim of the workspace at `root` on a scratch folder, whose lock this process holds."""
    others = _others(folder, root)
    if others != claims(folder):
        _write(folder, others)


def _others(folder: Path, root: Path) -> list[Claim]:
    return [known for known in claims(folder) if known.root != str(root)]


def _write(folder: Path, found: list[Claim]) -> None:
    write_atomically(folder / CLAIMS_FILE, json.dumps([asdict(known) for known in found]) + "\n")
