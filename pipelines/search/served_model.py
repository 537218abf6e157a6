"""The text search as MLflow loads it: this file is the model's code (`python_model` in registry.py), its folders are artifacts.

MLflow runs the file when it loads the model, in whatever process and checkout; `components` travels with the model (`code_paths`).
So no object of ours is pickled, and weights are read as safetensors.
"""

from collections.abc import Iterable
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class PersonSearch(PythonModel):
    """Sentences under `query`, as rows of a table or as {"query": [...]}; for each, the best matches of the gallery, best first."""

    def load_context(self, context: PythonModelContext) -> None:
        from components.search.query import TextSearch

        self.search = TextSearch.open(context.artifacts["encoder"], context.artifacts["index"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow would read hints as a schema
        queries = _sentences(model_input["query"])
        found = self.search.many(queries, int((params or {}).get("top", 5))) if queries else []
        return pd.DataFrame(
            {
                "query": queries,
                "image_ids": [[match.image_id for match in matches] for matches in found],
                "scores": [[match.score for match in matches] for matches in found],
                "identities": [[int(match.metadata["identity"]) for match in matches] for matches in found],
                "captions": [[str(match.metadata["caption"]) for match in matches] for matches in found],
            }
        )


def _sentences(cells: Iterable[Any]) -> list[str]:
    """MLflow makes {"query": [a, b]} one row whose cell is the list."""
    return [str(sentence) for cell in cells for sentence in ([cell] if isinstance(cell, str) else cell)]


mlflow.models.set_model(PersonSearch())
