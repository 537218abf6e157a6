"""What the retrieval stages share: building the encoder from params, feeding it, and one phase of its training."""

from collections.abc import Sequence
from pathlib import Path

from components.gadms.batches import CaptionBatches
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder
from components.gadms.tasks import RetrievalConfig, RetrievalTask
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.shards import PersonDataset, Rows
from components.training.loop import fit
from pipelines.context import StageContext
from pipelines.params import Method, Parameters, Training


def new_encoder(params: Parameters, captions: Sequence[str]) -> DualEncoder:
    """The encoder that `retrieval` names: published weights, or a new one with the vocabulary of `captions`."""
    settings, size = params.retrieval, (params.pictures.height, params.pictures.width)
    if settings.pretrained:
        return DualEncoder.from_pretrained(str(settings.architecture), settings.pretrained, image_size=size)
    tokenizer = CaptionTokenizer.from_corpus(captions) if isinstance(settings.architecture, dict) else None
    return DualEncoder.create(settings.architecture, image_size=size, tokenizer=tokenizer, seed=params.seed)


def caption_batches(
    encoder: DualEncoder, dataset: PersonDataset, rows: Rows, batch: int, params: Parameters, context: StageContext
) -> CaptionBatches:
    """This rank's batches of captions with their pictures."""
    size = encoder.image_size
    wrong = rows.column("wrong_words")
    return CaptionBatches(
        encoder,
        rows.column("caption"),
        rows.column("image_id"),
        _consecutive(rows.column("identity")),
        lambda image_ids: dataset.pixels(image_ids, *size),
        batch_size=batch,
        seed=params.seed,
        rank=context.rank,
        world_size=context.world_size,
        wrong_words=wrong if any(wrong) else None,
    )


def train_arm(
    encoder: DualEncoder,
    dataset: PersonDataset,
    method: Method,
    training: Training,
    params: Parameters,
    context: StageContext,
    output: Path,
) -> dict[str, float]:
    """Train `encoder` on the train split of `dataset` by the method of this arm, and save it."""
    rows = dataset.rows(split="train", form="long")
    config = RetrievalConfig(method=context.arm, **method.model_dump())  # type: ignore[arg-type]
    identities = len(set(rows.column("identity")))
    task = RetrievalTask(encoder, config, captions=len(rows), identities=identities, seed=params.seed)
    batches = caption_batches(encoder, dataset, rows, training.batch, params, context)
    fit(task, batches, training.loop(), context)
    encoder.save(output)
    return {"captions": len(rows), "identities": identities, "parameters": sum(p.numel() for p in encoder.parameters())}


def match_scores(encoder: DualEncoder, dataset: PersonDataset, rows: Rows) -> dict[int, float]:
    """Mean cosine of each picture with its captions, by image_id."""
    size, image_ids = encoder.image_size, rows.column("image_id")
    pictures = sorted(set(image_ids))
    images = embed_images(encoder, pictures, lambda ids: dataset.pixels(ids, *size))
    place = {image_id: i for i, image_id in enumerate(pictures)}
    texts = embed_captions(encoder, rows.column("caption"))
    cosines = (images[[place[i] for i in image_ids]] * texts).sum(1).tolist()
    grouped: dict[int, list[float]] = {}
    for image_id, cosine in zip(image_ids, cosines, strict=True):
        grouped.setdefault(image_id, []).append(cosine)
    return {image_id: sum(values) / len(values) for image_id, values in sorted(grouped.items())}


def _consecutive(identities: Sequence[int]) -> list[int]:
    """Identities as 0..n-1, in order of their numbers: what a classifier needs."""
    place = {identity: i for i, identity in enumerate(sorted(set(identities)))}
    return [place[identity] for identity in identities]
