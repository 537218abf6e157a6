"""Who uses a scratch folder: `claims.json` in it names the checkouts, and the workspaces of trials, whose stages it belongs to.

Checkouts that share a scratch root differ in parameters and code, so that none can tell what another one needs. Each gives up its
own claims (`gc`), and a folder is free when no claim is left. A workspace that is deleted has given up all of its own.

Two containers, or two machines, may have different checkouts at one path, and one checkout may be seen by containers that come and
go. So a checkout has an id of its own, a file that it keeps among DVC's temporary ones.
"""

import json
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from components.errors import DataError
from components.files import write_atomically
from pipelines.locks.file_lock import file_lock
from pipelines.locks.machine import place

CLAIMS_FILE = "claims.json"
CHECKOUT_FILE = ".dvc/tmp/checkout-id"
"""In a checkout; git ignores that folder."""
ELSEWHERE_SECONDS = 30 * 86400.0
"""How long a claim of another machine or container counts, where nobody here can see whether its workspace is there."""


@dataclass(frozen=True)
class Claim:
    """A workspace that has used the folder.

    Attributes:
        host: its machine's name, for messages.
        time: of its last use, in seconds since 1970.
        checkout: id of the checkout at `root`; "" for a trial's workspace, which has none, and in claims of older code.
        place: what it was used from, `pipelines.locks.machine.place`; "" in claims of older code.
    """

    root: str
    host: str
    time: float
    checkout: str = ""
    place: str = ""

    def holds(self) -> bool:
        """Return whether the workspace may still be there."""
        there = (Path(self.root) / "params.yaml").is_file()
        if there and self.checkout in ("", checkout_id(Path(self.root))):
            return True
        from_here = self.place == place() if self.place else self.host == socket.gethostname()
        return not from_here and time.time() - self.time < ELSEWHERE_SECONDS

    def is_of(self, root: Path) -> bool:
        """Return whether this is the claim of the workspace at `root`."""
        same = self.checkout == checkout_id(root) if self.place else self.host == socket.gethostname()
        return self.root == str(root) and same


def checkout_id(root: Path) -> str:
    """Return the id of the checkout at `root`, "" before it has one."""
    try:
        return (root / CHECKOUT_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _own_id(root: Path) -> str:
    """Return the id of the checkout at `root`, made at its first use; "" without a folder `.dvc` that may be written."""
    file = root / CHECKOUT_FILE
    with suppress(OSError):
        if not file.is_file() and (root / ".dvc").is_dir():
            with file_lock(file.with_suffix(".lock"), f"another process has held {file} for a minute: run again", 60.0):
                if not file.is_file():
                    write_atomically(file, uuid.uuid4().hex + "\n")
    return checkout_id(root)


def claims(folder: Path) -> list[Claim]:
    """Return the claims on a scratch folder. Raises DataError where they cannot be read: nobody's result is free then."""
    file = folder / CLAIMS_FILE
    try:
        return [Claim(**known) for known in json.loads(file.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise DataError(f"{file} cannot be read ({reason}): delete it if no other checkout uses that folder") from None


def claim(folder: Path, root: Path) -> None:
    """Claim a scratch folder, whose lock this process holds, for the workspace at `root`."""
    mine = Claim(str(root), socket.gethostname(), time.time(), _own_id(root), place())
    _write(folder, [*_others(folder, root), mine])


def give_up(folder: Path, root: Path) -> None:
    """Remove the claim of the workspace at `root` on a scratch folder, whose lock this process holds."""
    others = _others(folder, root)
    if others != claims(folder):
        _write(folder, others)


def _others(folder: Path, root: Path) -> list[Claim]:
    return [known for known in claims(folder) if not known.is_of(root)]


def _write(folder: Path, found: list[Claim]) -> None:
    write_atomically(folder / CLAIMS_FILE, json.dumps([asdict(known) for known in found]) + "\n")
