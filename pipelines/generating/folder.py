"""The output folder. It has one set of settings; its shards are complete or absent.

settings.json     the settings that determine the pictures; written first
skipped.json      the prompts that are not drawn: line, reason
shards/<n>.parquet   image_id, prompt_id, prompt, seed, index, image (PNG); with --each-adapter also adapter
finished.jsonl    the digest of each finished shard, while others are missing
manifest.json     every shard's digest, and the settings; written last, so that a folder with one is complete
samples/, samples.json   with `--naming compbench`
lock              held by the command that draws into the folder
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from components.errors import ParameterError
from components.files import TEMPORARY, file_digest, remove_temporaries, write_atomically
from pipelines.errors import InfrastructureError
from pipelines.generating.plan import Shard
from pipelines.generating.prompts import Skipped
from pipelines.scratch.folder import LEASE_FILE, LOCK_FILE, Scratch

SETTINGS, SKIPPED, FINISHED, PICTURES_MANIFEST = "settings.json", "skipped.json", "finished.jsonl", "manifest.json"
SHARDS = "shards"


class OutputFolder:
    """Reads and writes the files of the folder at `path`, except the shards, which painters write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = path / SHARDS

    @contextmanager
    def claim(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Create the folder if needed, and hold its lock for pictures of these settings.

        Raises ParameterError if it holds other files, or finished shards of other settings.
        """
        self._require_own_folder()
        with Scratch(self.path).lock():
            known = self._read(SETTINGS)
            if known is not None and known != settings and any(self.shards.glob("*.parquet")):
                raise ParameterError(f"{self.path}: {_difference(known, settings)}; choose another --output")
            self._write(SETTINGS, settings)
            self.shards.mkdir(exist_ok=True)
            remove_temporaries(self.path)
            remove_temporaries(self.shards)
            yield

    def finished(self, shards: Sequence[Shard]) -> dict[int, str]:
        """Return the digests of the finished shards by number, of those whose file still has its digest.

        If some are missing, removes the manifest, which marks a complete folder.
        """
        recorded = self._recorded()
        found = {
            shard.number: recorded[shard.name]
            for shard in shards
            if shard.name in recorded
            and (self.shards / shard.name).is_file()
            and file_digest(self.shards / shard.name) == recorded[shard.name]
        }
        if len(found) < len(shards):
            lines = [_line(shard, found[shard.number]) for shard in shards if shard.number in found]
            write_atomically(self.path / FINISHED, "".join(lines))
            (self.path / PICTURES_MANIFEST).unlink(missing_ok=True)
        return found

    def record(self, shard: Shard, digest: str) -> None:
        """Record that `shard` is finished. Raises InfrastructureError if its file is not visible on this machine."""
        path = self.shards / shard.name
        if not path.is_file() or file_digest(path) != digest:
            raise InfrastructureError(
                f"{path}: a worker wrote this shard, but it is not here; --output must be a folder that all nodes share"
            )
        with open(self.path / FINISHED, "a", encoding="utf-8") as file:
            file.write(_line(shard, digest))
            file.flush()
            os.fsync(file.fileno())

    def write_skipped(self, skipped: Sequence[Skipped]) -> None:
        """Write the prompts that are not drawn."""
        self._write(SKIPPED, [asdict(one) for one in skipped])

    def write_manifest(self, shards: Sequence[Shard], digests: Mapping[int, str], settings: Mapping[str, Any]) -> None:
        """Write the manifest of all shards, which must be finished: no worker writes any more."""
        remove_temporaries(self.shards)  # of workers that died
        rows: list[dict[str, Any]] = [
            {"file": one.name, "pictures": len(one.pictures), "sha256": digests[one.number]}
            | ({"adapter": one.adapter} if one.adapter else {})
            for one in shards
        ]
        pictures = sum(len(shard.pictures) for shard in shards)
        self._write(PICTURES_MANIFEST, {"pictures": pictures, "settings": settings, "shards": rows})
        (self.path / FINISHED).unlink(missing_ok=True)

    def _require_own_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ParameterError(f"--output {self.path}: is not a folder")
        names = {file.name for file in self.path.iterdir()} if self.path.exists() else set()
        foreign = sorted(name for name in names if name not in (LOCK_FILE, LEASE_FILE) and not fnmatch(name, TEMPORARY))
        if foreign and "generator" not in (self._read(SETTINGS) or {}):
            raise ParameterError(
                f"--output {self.path}: holds {foreign[0]}, which is not of a generation; choose an empty folder"
            )
        if self.shards.is_symlink():
            raise ParameterError(f"{self.shards}: is a symbolic link; choose another --output")

    def _recorded(self) -> dict[str, str]:
        """Return the digests of all shards recorded as finished, by file."""
        manifest = self._read(PICTURES_MANIFEST) or {}
        digests = {row["file"]: row["sha256"] for row in manifest.get("shards", [])}
        path = self.path / FINISHED
        for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []:  # the last may be torn
            row = json.loads(line)
            digests[row["file"]] = row["sha256"]
        return digests

    def _read(self, name: str) -> dict[str, Any] | None:
        """Read a JSON file of the folder; None if there is none."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, value: Any) -> None:
        write_atomically(self.path / name, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def _line(shard: Shard, digest: str) -> str:
    return json.dumps({"file": shard.name, "sha256": digest}) + "\n"


def _difference(known: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Describe the first setting that differs; only by name if its value is a digest."""
    for key, value in settings.items():
        if key in ("model", "gguf", "adapters", "each", "code", "packages", "prompts") and known.get(key) != value:
            return f"was made with other {'LoRAs' if key == 'each' else key}"
        if known.get(key) != value:
            return f"was made with {key} {json.dumps(known.get(key))}, now it is {json.dumps(value)}"
    return f"was made with {next(key for key in known if key not in settings)}, which this version does not know"
