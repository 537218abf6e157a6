"""The text search as an MLflow model: this file is its code (`python_model` in registry.py), its folders are artifacts.

MLflow runs the file when it loads the model, in any process; the model contains `components` (`code_paths`). So nothing is pickled,
and weights are read as safetensors.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class PersonSearch(PythonModel):
    """Finds the best matches for each sentence in the column `query` of a table, or in {"query": [...]}, best first."""

    def load_context(self, context: PythonModelContext) -> None:
        from components.search.encoders import open_encoder
        from components.search.gallery.reading import Gallery
        from components.search.searcher import Searcher

        encoder = Path(context.artifacts.get("encoder", "")).resolve()
        gallery = Gallery.open_copy(Path(context.artifacts["index"]).resolve())
        model = str(context.model_config["model"]).replace("{encoder}", str(encoder))
        self.searcher = Searcher(gallery, open_encoder({**gallery.model, "name": model}, encoder.parent))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow would read hints as a schema
        from components.search.searcher import Query

        queries = _sentences(model_input["query"])
        top = int((params or {}).get("top", 5))
        found = self.searcher.search([Query((query,)) for query in queries], top) if queries else []
        of_pipeline = self.searcher.gallery.source["kind"] == "pipeline"
        name = int if of_pipeline else str

        def column(key: str, kind: type = str) -> list[list[Any]]:
            return [[kind(match.metadata.get(key) or "") for match in matches] for matches in found]

        return pd.DataFrame(
            {
                "query": queries,
                "image_ids": column("id", name),
                "scores": [[match.score for match in matches] for matches in found],
                "identities": column("identity", name),
                "captions": column("caption"),
                "unread": [
                    self.searcher.encoder.unread(query) for query in queries
                ],  # the end of a sentence that is too long
                **({} if of_pipeline else {"files": column("file")}),
            }
        )


def _sentences(cells: Iterable[Any]) -> list[str]:
    """Flatten cells that are lists: MLflow makes {"query": [a, b]} one row whose cell is the list."""
    return [str(sentence) for cell in cells for sentence in ([cell] if isinstance(cell, str) else cell)]


mlflow.models.set_model(PersonSearch())
