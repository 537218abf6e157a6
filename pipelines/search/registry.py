"""Puts the text search into MLflow's model registry, for serving.

The model is a self-contained pyfunc: encoder, index and the code that reads them. A child run of the `index` stage logs it, so
that a version can be traced to its inputs; tags of the version hold digests of its files.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

from components.errors import DataError
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import digest, tree_digests
from pipelines.params import load
from pipelines.records.manifests import find_by_content
from pipelines.scratch.manifest import Manifest
from pipelines.search.gallery_search import INDEX, MODEL
from pipelines.workspace import Workspace

NEEDS = ("mlflow", "torch", "torchvision", "open_clip_torch", "safetensors", "pyarrow", "pandas", "numpy", "tokenizers")
EXAMPLE = {"query": ["a woman in a red coat"]}


def register(name: str, workspace: Workspace) -> str:
    """Register the workspace's text search as the next version of `name`. Returns a line that says how to load it.

    Raises DataError when the model or the index does not exist, or the run that made the index is unknown.
    """
    manifest = _index_run(workspace)
    from pipelines.tracking.addresses import tracking_uri
    from pipelines.tracking.runs import connect

    tracker = connect(workspace)
    client = tracker.client
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(manifest.run)
    except MlflowException:
        raise DataError(f"register: run {manifest.run}, which made {INDEX}, is not in this MLflow store") from None
    mlflow.set_tracking_uri(tracking_uri(workspace))
    tags = {
        "pipelines.fingerprint": manifest.fingerprint,
        "pipelines.index": digest(manifest.outputs[INDEX]),
        "pipelines.encoder": digest(tree_digests(workspace.path(MODEL))),
    }
    _silence_mlflow()
    with mlflow.start_run(
        experiment_id=tracker.experiment,
        parent_run_id=manifest.run,
        run_name=f"register/{name}",
        tags={"upstream.index": manifest.run},
    ):
        logged = mlflow.pyfunc.log_model(
            name="person_search",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"encoder": str(workspace.path(MODEL)), "index": str(workspace.path(INDEX))},
            code_paths=[str(ROOT / "components")],
            signature=_signature(),
            pip_requirements=[f"{package}=={_public_version(package)}" for package in NEEDS],
            registered_model_name=name,
        )
    version = logged.registered_model_version
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    return (
        f'registered {name} version {version}: mlflow.pyfunc.load_model("models:/{name}/{version}").predict({EXAMPLE})'
    )


def _index_run(workspace: Workspace) -> Manifest:
    for path in (MODEL, INDEX):
        if not workspace.path(path).is_dir():
            raise DataError(f"register: {path} does not exist: run `dvc repro index`")
    params = load(workspace.path("params.yaml"))
    found = find_by_content(INDEX, tree_digests(workspace.path(INDEX)), workspace, params)
    if found is None or not found.run:
        raise DataError(f"register: the run that made {INDEX} is unknown: run `dvc repro --force index`")
    return found


def _silence_mlflow() -> None:
    import logging
    import warnings

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")


def _public_version(package: str) -> str:
    """The installed version without a local part such as "+cpu", which no package index serves."""
    return metadata.version(package).partition("+")[0]


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    outputs = [
        ColSpec(DataType.string, "query"),
        ColSpec(Array(DataType.long), "image_ids"),
        ColSpec(Array(DataType.double), "scores"),
        ColSpec(Array(DataType.long), "identities"),
        ColSpec(Array(DataType.string), "captions"),
        ColSpec(DataType.string, "unread"),
    ]
    parameters = ParamSchema([ParamSpec("top", DataType.long, 5)])
    return ModelSignature(Schema([ColSpec(AnyType(), "query")]), Schema(outputs), parameters)
