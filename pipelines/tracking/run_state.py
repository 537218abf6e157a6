"""What a scratch folder remembers of its MLflow run: `mlflow.json`."""

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from components.files import write_atomically
from pipelines.tracking.models import TrackedModel

STATE_FILE = "mlflow.json"


class RunEnd(BaseModel):
    """How a run ends: its status, final metrics, tags and models, and the time in ms since 1970."""

    status: str
    metrics: dict[str, float]
    tags: dict[str, str] = {}
    models: list[TrackedModel] = []
    time: int


class RunState(BaseModel):
    """How far the delivery to a run has come.

    Attributes:
        uri: of the server, without its password.
        token: in a tag of the run, by which it is found when the process was killed while creating it.
        run, parent: ids; None before the run is created, or for a parent whose status is set by others.
        described: whether parameters and inputs were logged.
        delivered: the last step that the server has, by phase and metric.
        ended: how the run ends, saved before it is sent.
        closed: whether the server has confirmed the end.
    """

    uri: str
    token: str
    run: str | None = None
    parent: str | None = None
    described: bool = False
    delivered: dict[str, dict[str, int]] = {}
    ended: RunEnd | None = None
    closed: bool = False

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the state in a scratch folder. Raises OSError or ValueError without one that can be read."""
        return cls.model_validate(json.loads((folder / STATE_FILE).read_text()))

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """Return the state in a scratch folder, or None without one that can be read."""
        try:
            return cls.load(folder)
        except (OSError, ValueError):
            return None

    def save(self, folder: Path) -> None:
        write_atomically(folder / STATE_FILE, json.dumps(self.model_dump()))

    def must_be_closed(self, uri: str) -> bool:
        """Return whether the run has ended and the server at `uri` has not confirmed it."""
        return self.uri == uri and not self.closed and self.ended is not None
