"""Models on MLflow's model pages: where their bytes are, the run and the data that made them. The bytes stay with DVC."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from mlflow import MlflowClient


class TrackedModel(BaseModel):
    """A model that a stage has written to `path`. `dataset`: name and digest of the input with which its metrics are shown."""

    path: str
    tags: dict[str, str]
    parameters: dict[str, str]
    dataset: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """`adapters-taca` for models/adapters/taca: MLflow allows no slash in a name."""
        return self.path.removeprefix("models/").replace("/", "-")

    @property
    def kind(self) -> str:
        """`adapters`, `retrieval`: the model type, by which the page of models can be filtered."""
        return self.path.removeprefix("models/").partition("/")[0]


def log_models(client: "MlflowClient", run_id: str, models: Sequence[TrackedModel]) -> dict[str, Any]:
    """Show models on MLflow's model pages, as models whose bytes are elsewhere, each once for a run.

    Returns the keywords with which a `Metric` of the run is shown with the last of them too; {} without models.
    """
    if not models:
        return {}
    from mlflow.entities import LoggedModelOutput
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

    experiment = client.get_run(run_id).info.experiment_id
    known = {found.name: found for found in client.search_logged_models([experiment], f"source_run_id = '{run_id}'")}
    shown: dict[str, Any] = {}
    for model in models:
        logged = known.get(model.name)
        if logged is None:
            tags = {MLFLOW_MODEL_IS_EXTERNAL: "true", "dvc.path": model.path, **model.tags}
            logged = client.create_logged_model(experiment, model.name, run_id, tags, model.parameters, model.kind)
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
            client.finalize_logged_model(logged.model_id, "READY")
        shown = {"model_id": logged.model_id, "run_id": run_id}
        if model.dataset:
            shown |= {"dataset_name": model.dataset[0], "dataset_digest": model.dataset[1]}
    return shown
