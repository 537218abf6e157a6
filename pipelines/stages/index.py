"""Embed a gallery with the retrieval model for text search."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.files import file_digest
from components.gadms.embedding import embed_images
from components.gadms.model import WEIGHTS_FILE, DualEncoder
from components.persons.shards import PersonDataset
from components.search.index import GalleryIndex
from pipelines.engine.context import StageContext
from pipelines.params import Parameters


def run(
    params: Parameters, inputs: Mapping[str, Path], outputs: Mapping[str, Path], context: StageContext
) -> dict[str, Any]:
    people, encoder = PersonDataset(inputs["people"]), DualEncoder.load(inputs["model"]).to(context.device)
    rows = {row["image_id"]: row for row in people.needed_rows(split=params.index.split, form="long")}
    image_ids = list(rows)
    vectors = embed_images(
        encoder, image_ids, lambda ids: people.pixels(ids, *encoder.image_size), batch_size=params.index.batch
    )
    metadata = {
        "identity": [row["identity"] for row in rows.values()],
        "caption": [row["caption"] for row in rows.values()],
    }
    model = {"weights": file_digest(inputs["model"] / WEIGHTS_FILE)}
    index = GalleryIndex(vectors, image_ids, metadata=metadata, model=model)
    index.save(outputs["index"])
    return {"gallery": len(image_ids), "dimensions": encoder.embed_dim}
