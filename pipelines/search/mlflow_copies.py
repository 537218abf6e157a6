"""Copies of a gallery's pictures in MLflow: models that were logged with an index, and the registered versions of them.

A copy of a gallery names its pictures by digest. The pipeline's own index does not; there a picture is found by its vector, if the
same weights made both.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from components.search.gallery import layout
from components.search.index import METADATA_FILE, REFERENCE_FILE, VECTORS_FILE, GalleryIndex
from pipelines.tracking.addresses import has_store, tracking_uri
from pipelines.tracking.runs import connect, explained_failures
from pipelines.workspace import Workspace

SAME = 1e-3
"""Distance of unit vectors below which they are of the same picture, half precision included."""


@dataclass(frozen=True)
class Wanted:
    """Pictures to look for: their digests; their vectors (n, D), and the digest of the model that made them."""

    digests: frozenset[str]
    vectors: np.ndarray
    model: str

    def count_in_gallery(self, table: Path) -> int:
        """Return how many of the pictures the table of a gallery's version holds."""
        return len(self.digests & set(pq.read_table(table, columns=["sha256"])["sha256"].to_pylist()))

    def count_in_index(self, folder: Path) -> int | None:
        """Return how many of the pictures an index of the pipeline holds; None where another model made it."""
        index = GalleryIndex.open(folder)
        if index.model.get("weights") != self.model or not len(self.vectors):
            return None
        cosines = _unit(self.vectors) @ _unit(index.embeddings.numpy()).T
        return int((cosines.max(axis=1) > 1 - SAME * SAME / 2).sum())


@dataclass(frozen=True)
class Copy:
    """A model in MLflow whose artifacts hold wanted pictures. versions: (registered name, version) of it."""

    location: str
    model_id: str | None
    versions: tuple[tuple[str, str], ...]
    pictures: int

    def __str__(self) -> str:
        return ", ".join(f"{name} version {version}" for name, version in self.versions) or f"model {self.model_id}"


class MlflowCopies:
    """Looks for copies in the tracking store of a workspace. Raises InfrastructureError where it does not answer."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._exists = has_store(workspace)  # one that is not there is not created
        self.unchecked: list[str] = []
        """Models with an index of another model's vectors, in which pictures cannot be found."""

    def find(self, wanted: Wanted) -> list[Copy]:
        """Return the models that hold wanted pictures."""
        if not self._exists:
            return []
        self._client = connect(self._workspace).client
        with explained_failures(self._workspace):
            found = []
            for location, model_id, versions in self._models():
                copy = Copy(location, model_id, versions, 0)
                pictures = self._count(location, wanted)
                if pictures is None:
                    self.unchecked.append(str(copy))
                elif pictures:
                    found.append(Copy(location, model_id, versions, pictures))
            return found

    def remove(self, copies: Sequence[Copy]) -> None:
        """Delete the files of copies, then their registered versions and models; may be called again after a kill."""
        with explained_failures(self._workspace):
            for copy in copies:
                self._artifacts(copy.location).delete_artifacts()
                for name, version in copy.versions:
                    self._client.delete_model_version(name, version)
                if copy.model_id:
                    self._client.delete_logged_model(copy.model_id)

    def _models(self) -> Iterator[tuple[str, str | None, tuple[tuple[str, str], ...]]]:
        """Yield the location of every model's files, its id, and the registered versions of it."""
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        registered: dict[str, list[tuple[str, str]]] = {}
        for version in _pages(self._client.search_model_versions):
            registered.setdefault(str(version.source), []).append((version.name, str(version.version)))
        experiments = [each.experiment_id for each in _pages(self._client.search_experiments)]
        for experiment in experiments:
            for model in _pages(self._client.search_logged_models, experiment_ids=[experiment]):
                versions = registered.pop(f"models:/{model.model_id}", []) + registered.pop(model.artifact_location, [])
                if model.tags.get(MLFLOW_MODEL_IS_EXTERNAL) != "true":
                    yield model.artifact_location, model.model_id, tuple(versions)
        for versions in registered.values():  # of models that were logged elsewhere, or by an older MLflow
            yield self._client.get_model_version_download_uri(*versions[0]), None, tuple(versions)

    def _count(self, location: str, wanted: Wanted) -> int | None:
        """How many wanted pictures the files of a model hold; None where that cannot be told of its index."""
        artifacts = self._artifacts(location)
        counts: list[int | None] = []
        for folder, names in _folders(artifacts):
            with tempfile.TemporaryDirectory() as temporary:
                place = Path(temporary)
                if layout.TABLE in names:
                    table = artifacts.download_artifacts(_joined(folder, layout.TABLE), str(place))
                    counts.append(wanted.count_in_gallery(Path(table)))
                elif {METADATA_FILE, REFERENCE_FILE, VECTORS_FILE} <= names:
                    for name in (METADATA_FILE, REFERENCE_FILE, VECTORS_FILE):
                        artifacts.download_artifacts(_joined(folder, name), str(place))
                    counts.append(wanted.count_in_index(place / folder))
        known = [count for count in counts if count is not None]
        return sum(known) if known or not counts else None

    def _artifacts(self, location: str) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(location, tracking_uri=tracking_uri(self._workspace))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors in float64: those of half precision are a little shorter or longer, by more than SAME allows."""
    exact = vectors.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**arguments, **({"page_token": token} if token else {}))
        yield from page
        token = page.token
        if not token:
            return


def _folders(artifacts: Any, folder: str = "") -> Iterator[tuple[str, set[str]]]:
    """Yield every folder below a model's location, with the names of its files."""
    found = artifacts.list_artifacts(folder or None)
    yield folder, {PurePosixPath(each.path).name for each in found if not each.is_dir}
    for each in found:
        if each.is_dir:
            yield from _folders(artifacts, each.path)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
