"""Training of the dual encoder in a stage: the encoder from params, its batches, and one phase."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from components.gadms.architecture import context_length_of, model_config
from components.gadms.batches import CaptionBatches
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.published import pretrained_encoder
from components.gadms.selection import PeriodicValidation
from components.gadms.tasks import RetrievalTask
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.augmentation import AugmentationConfig
from components.persons.drawn.lexicon import states_fact
from components.persons.shards import PersonDataset, Rows
from components.training.config import ValidatedTrainingConfig
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.parts.cut_captions import count_cut

READERS = 4
"""Threads that read pictures ahead of training, each those of one step."""


def new_encoder(params: Parameters, captions: Iterable[str], root: Path = Path()) -> DualEncoder:
    """Create the encoder of the section `retrieval`: published weights, or a new one with the vocabulary of `captions`.

    A file or folder of weights is relative to `root`, the workspace.
    """
    settings = params.retrieval
    height, width = settings.image_size or (params.pictures.height, params.pictures.width)
    if settings.pretrained:
        return pretrained_encoder(
            settings.architecture,
            settings.pretrained,
            root=root,
            sha256=settings.pretrained_sha256,
            image_size=(height, width),
            position_resize=settings.position_resize,
        )
    tokenizer = None
    if isinstance(settings.architecture, dict):
        context_length = context_length_of(model_config(settings.architecture, (height, width)))
        tokenizer = CaptionTokenizer.from_corpus(captions, context_length)
    return DualEncoder.create(settings.architecture, image_size=(height, width), tokenizer=tokenizer, seed=params.seed)


def caption_batches(
    encoder: DualEncoder,
    dataset: PersonDataset,
    rows: Rows,
    batch: int,
    steps: int,
    params: Parameters,
    context: StageContext,
    augmentation: AugmentationConfig | None = None,
) -> CaptionBatches:
    """Return this rank's batches of captions with their pictures, which are read ahead until the batches are closed."""
    size, captions = encoder.image_size, rows.column("caption")
    wrong, facts = rows.column("wrong_words"), None
    if any(wrong) and all(attributes != "{}" for attributes in rows.column("attributes")):  # drawn people
        facts = [[i for i, word in enumerate(text.split()) if states_fact(word)] for text in captions]
    return CaptionBatches(
        encoder,
        captions,
        rows.column("image_id"),
        _consecutive(rows.column("identity")),
        lambda image_ids: dataset.pixels(image_ids, *size),
        batch_size=batch,
        seed=params.seed,
        rank=context.rank,
        world_size=context.world_size,
        augmentation=augmentation,
        wrong_words=wrong if any(wrong) else None,
        fact_words=facts,
        readers=READERS,
        steps=steps,
    )


def train_arm(
    encoder: DualEncoder,
    dataset: PersonDataset,
    method: RetrievalConfig,
    training: ValidatedTrainingConfig,
    params: Parameters,
    context: StageContext,
    output: Path,
) -> dict[str, object]:
    """Train `encoder` on the train split of `dataset` by the method of the arm, and save it.

    With `validate_every`, the weights that are best on the val split are saved; without a val split, the last.
    """
    rows = dataset.needed_rows(split="train", form="long")
    identities = len(set(rows.column("identity")))
    validated = dataset.rows(split="val", form="long") if training.validate_every else None
    if validated is not None and not len(validated):
        print("no val split to select weights on: the last ones are kept", flush=True)
        validated = None
    encoder.checkpoint_activations(params.retrieval.gradient_checkpointing)
    task = RetrievalTask(
        encoder,
        method.for_arm(context.arm),
        captions=len(rows),
        identities=identities,
        seed=params.seed,
        keep_best=validated is not None,
    )
    print_decoder_start(task)
    cut = count_cut(encoder.tokenizer, rows.column("caption"), "training captions", context.rank)
    with caption_batches(
        encoder, dataset, rows, training.batch, training.steps, params, context, method.augmentation
    ) as batches:
        fit(task, batches, training, context, on_report=_validation(task, dataset, validated, training))
    metrics: dict[str, object] = {
        "captions": len(rows),
        "captions_cut": cut,
        "identities": identities,
        "parameters": sum(p.numel() for p in encoder.parameters()),
    }
    task.save(output)
    if task.masked_by_score is not None:
        metrics["masked_by_score"] = task.masked_by_score
    if task.best is not None:
        metrics["selected"] = {"step": int(task.best.step), "val/R@1": task.best.score.item()}
    return metrics


def print_decoder_start(task: RetrievalTask) -> None:
    """Say whether the masked-token decoder goes on from a trained one."""
    if task.decoder is not None:
        start = "goes on from the pretrained weights" if task.continues_decoder else "begins new"
        print(f"masked-token decoder: {start}", flush=True)


def _validation(
    task: RetrievalTask, dataset: PersonDataset, rows: Rows | None, training: ValidatedTrainingConfig
) -> PeriodicValidation | None:
    """Return the validation that runs while `task` trains, or None."""
    if rows is None or task.best is None or training.validate_every is None:
        return None
    size = task.encoder.image_size
    return PeriodicValidation(
        task.encoder,
        task.best,
        rows.column("caption"),
        rows.column("image_id"),
        rows.column("identity"),
        lambda image_ids: dataset.pixels(image_ids, *size),
        every=training.validate_every,
        steps=training.steps,
    )


def match_scores(encoder: DualEncoder, dataset: PersonDataset, rows: Rows) -> dict[int, float]:
    """Return the mean cosine of each picture with its captions, by image_id."""
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
    """Number identities 0..n-1 in their order, as a classifier needs them."""
    place = {identity: i for i, identity in enumerate(sorted(set(identities)))}
    return [place[identity] for identity in identities]
