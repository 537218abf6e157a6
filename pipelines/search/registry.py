"""Puts the text search of a gallery into MLflow's model registry, for serving.

The model is a pyfunc of encoder, index and the code that reads them. Of the pipeline's own index, a child run of the stage `index`
logs it, so that a version can be traced to its inputs; of another gallery, a run of its own. Tags of the version hold digests.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.search.gallery.reading import Gallery, is_pipeline_index
from components.search.model_reference import parse_reference
from pipelines.errors import REPRO_COMMAND
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import digest, tree_digests
from pipelines.params import load
from pipelines.records.manifests import find_by_content
from pipelines.scratch.manifest import Manifest
from pipelines.search.gallery_folder import held
from pipelines.search.gallery_search import INDEX, MODEL
from pipelines.workspace import Workspace

NEEDS = ("mlflow", "torch", "torchvision", "open_clip_torch", "safetensors", "pyarrow", "pandas", "numpy", "tokenizers")
EXAMPLE = {"query": ["a woman in a red coat"]}


@dataclass(frozen=True)
class _Search:
    """What is registered. encoder: its folder or file, None where open_clip gets it by its name. model: a reference to it, in which
    {encoder} stands for its place. parent: the run that made the index."""

    index: Path
    encoder: Path | None
    model: str
    tags: Mapping[str, str]
    parent: str | None = None
    approximate: bool = False


def register(name: str, workspace: Workspace, gallery: Path | None = None) -> str:
    """Register the search of a gallery, None for the workspace's own, as the next version of `name`. Returns how to load it.

    Raises DataError when the model or the index does not exist, or the run that made the workspace's index is unknown, and
    InfrastructureError while another process updates the gallery.
    """
    own = gallery is None or is_pipeline_index(gallery)
    if gallery is not None and own and gallery.resolve() != workspace.path(INDEX).resolve():
        raise DataError(f"register: {gallery} is made by the pipeline of another checkout: register it there")
    with _own_index(workspace) if gallery is None or own else _gallery(gallery, workspace) as search:
        version = _log(name, search, workspace, _signature(of_pipeline=own))
    loaded = f'mlflow.pyfunc.load_model("models:/{name}/{version}").predict({EXAMPLE})'
    if search.encoder is None:
        loaded += f"; without the weights: it gets {search.model} by open_clip where it is loaded"
    return f"registered {name} version {version}: {loaded}"


@contextmanager
def _own_index(workspace: Workspace) -> Iterator[_Search]:
    manifest = _index_run(workspace)
    encoder = workspace.path(MODEL)
    tags = {
        "pipelines.fingerprint": manifest.fingerprint,
        "pipelines.index": digest(manifest.outputs[INDEX]),
        "pipelines.encoder": digest(tree_digests(encoder)),
    }
    yield _Search(workspace.path(INDEX), encoder, "{encoder}", tags, parent=manifest.run)


@contextmanager
def _gallery(path: Path, workspace: Workspace) -> Iterator[_Search]:
    """The version that answers. The gallery is held: what is forgotten meanwhile would be in the copy."""
    Gallery.open(path)  # before a lock is made in a folder that is no gallery
    with held(path):
        opened = Gallery.open(path)
        model = parse_reference(str(opened.model["name"]), workspace.root)
        encoder = model.folder or model.file
        size = "" if model.image_size is None else "@{}x{}".format(*model.image_size)
        architecture = f"{model.architecture}:" if model.architecture else ""
        tags = {
            "pipelines.gallery_version": opened.version,
            "pipelines.index": digest(tree_digests(opened.folder)),
            "pipelines.encoder": str(opened.model["digest"]),
        }
        yield _Search(
            opened.folder,
            encoder,
            f"{architecture}{{encoder}}{size}" if encoder else model.name,
            tags,
            approximate=opened.approximate is not None,
        )


def _log(name: str, search: _Search, workspace: Workspace, signature: Any) -> str:
    """Log the model and register it; return the version."""
    from pipelines.tracking.addresses import tracking_uri
    from pipelines.tracking.runs import connect, known_run

    tracker = connect(workspace)
    client = tracker.client
    import mlflow

    if search.parent is not None and known_run(search.parent, client) is None:
        raise DataError(f"register: run {search.parent}, which made {INDEX}, is not in this MLflow store")
    mlflow.set_tracking_uri(tracking_uri(workspace))
    _silence_mlflow()
    needs = (*NEEDS, "faiss-cpu") if search.approximate else NEEDS
    artifacts = {"index": search.index} | ({"encoder": search.encoder} if search.encoder else {})
    with mlflow.start_run(
        experiment_id=tracker.experiment,
        parent_run_id=search.parent,
        run_name=f"register/{name}",
        tags={"upstream.index": search.parent} if search.parent else None,
    ):
        logged = mlflow.pyfunc.log_model(
            name="person_search",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={key: str(place) for key, place in artifacts.items()},
            model_config={"model": search.model},
            code_paths=[str(ROOT / "components")],
            signature=signature,
            pip_requirements=[f"{package}=={_public_version(package)}" for package in needs],
            registered_model_name=name,
        )
    version = str(logged.registered_model_version)
    for key, value in search.tags.items():
        client.set_model_version_tag(name, version, key, value)
    return version


def _index_run(workspace: Workspace) -> Manifest:
    for path in (MODEL, INDEX):
        if not workspace.path(path).is_dir():
            raise DataError(f"register: {path} does not exist: run `{REPRO_COMMAND} index`")
    params = load(workspace.path("params.yaml"))
    found = find_by_content(INDEX, tree_digests(workspace.path(INDEX)), workspace, params)
    if found is None or not found.run:
        raise DataError(f"register: the run that made {INDEX} is unknown: run `{REPRO_COMMAND} --force index`")
    return found


def _silence_mlflow() -> None:
    import logging
    import warnings

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")


def _public_version(package: str) -> str:
    """The installed version without a local part such as "+cpu", which no package index serves."""
    return metadata.version(package).partition("+")[0]


def _signature(*, of_pipeline: bool) -> Any:
    """Of the pipeline's index ids and identities are numbers; elsewhere they are text, and files have names."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    names = DataType.long if of_pipeline else DataType.string
    outputs = [
        ColSpec(DataType.string, "query"),
        ColSpec(Array(names), "image_ids"),
        ColSpec(Array(DataType.double), "scores"),
        ColSpec(Array(names), "identities"),
        ColSpec(Array(DataType.string), "captions"),
        ColSpec(DataType.string, "unread"),
        *([] if of_pipeline else [ColSpec(Array(DataType.string), "files")]),
    ]
    parameters = ParamSchema([ParamSpec("top", DataType.long, 5)])
    return ModelSignature(Schema([ColSpec(AnyType(), "query")]), Schema(outputs), parameters)
