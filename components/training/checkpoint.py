"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder `step-<n>` holding `state.pt` and `manifest.json` (its SHA-256). It is written under a temporary name,
flushed to disk, then renamed, so that it is complete or absent. Loading goes from the newest to the oldest and skips those that do
not match their digest, so a torn or corrupt file costs one interval of work, not the run.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from components.files import file_digest, write_atomically

logger = logging.getLogger(__name__)

STATE, CHECKPOINT_MANIFEST = "state.pt", "manifest.json"


class CheckpointStore:
    """The checkpoints of one run in `folder`, of which the newest `keep` are kept."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint folder, oldest first, readable or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Write `state` (nested dicts and lists of tensors, numbers and strings) as the checkpoint after `step` steps.

        Raises OSError when the disk is full; earlier checkpoints are not changed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob(".writing-*"):  # left by a killed process
            shutil.rmtree(torn, ignore_errors=True)
        temporary = self.folder / f".writing-{step}"
        temporary.mkdir()
        try:
            with open(temporary / STATE, "wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            write_atomically(
                temporary / CHECKPOINT_MANIFEST,
                json.dumps({"step": step, "sha256": file_digest(temporary / STATE)}) + "\n",
            )
            final = self.folder / f"step-{step:08d}"
            shutil.rmtree(final, ignore_errors=True)  # unreadable, so its step was computed again
            os.rename(temporary, final)
            _flush_folder(self.folder)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            cause = _os_error(error)
            if cause is None:
                raise
            raise OSError(
                cause.errno,
                f"{cause.strerror}: the checkpoint after step {step} cannot be written to {self.folder}; "
                "earlier ones are kept: make room, and run again to resume",
            ) from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step-{old:08d}", ignore_errors=True)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Return the newest readable checkpoint as (step, state), or None. Unreadable ones are skipped with a warning."""
        for step in reversed(self.steps()):
            folder = self.folder / f"step-{step:08d}"
            try:
                manifest = json.loads((folder / CHECKPOINT_MANIFEST).read_text())
                if file_digest(folder / STATE) != manifest["sha256"]:
                    raise ValueError("digest differs")
                return step, torch.load(folder / STATE, map_location="cpu", weights_only=True)
            except (OSError, ValueError, KeyError) as error:
                logger.warning("checkpoint %s cannot be read (%s); trying the previous one", folder, error)
        return None


def _os_error(error: BaseException) -> OSError | None:
    """Return the operating system's error: torch.save raises another one while it handles that of the file."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _flush_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
