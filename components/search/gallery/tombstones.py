"""The digests of forgotten pictures: an update does not add these bytes again, under whatever name."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from components.errors import DataError
from components.files import write_atomically
from components.search.gallery import layout


def tombstones(gallery: Path) -> frozenset[str]:
    """Return the SHA-256 of every forgotten picture. Raises DataError where the file is broken: nothing may be added then."""
    return frozenset(entry["sha256"] for entry in _entries(gallery))


def add_tombstones(gallery: Path, digests: Iterable[str]) -> None:
    """Add digests, with the present day; those that are there stay as they are."""
    known = _entries(gallery)
    new = sorted(set(digests) - {entry["sha256"] for entry in known})
    if not new:
        return
    today = datetime.now(UTC).date().isoformat()
    lines = [*known, *({"sha256": digest, "when": today} for digest in new)]
    write_atomically(gallery / layout.TOMBSTONES, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    layout.sync_folder(gallery)


def _entries(gallery: Path) -> list[dict[str, str]]:
    file = gallery / layout.TOMBSTONES
    try:
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        return [{"sha256": str(entry["sha256"]), "when": str(entry["when"])} for entry in entries]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); restore it: it keeps forgotten pictures out") from error
