"""One phase of training the dual encoder on a streamed corpus."""

from itertools import islice
from pathlib import Path

from components.errors import ParameterError
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.tasks import RetrievalTask
from components.persons.streaming.corpus import Corpus
from components.training.config import ValidatedTrainingConfig
from components.training.loop import fit
from pipelines.engine.context import StageContext
from pipelines.params import Parameters
from pipelines.stages.parts.cut_captions import count_cut
from pipelines.stages.parts.retrieval_training import print_decoder_start
from pipelines.streaming.batches import streamed_batches

COUNTED = 100_000
"""Captions, the first of the corpus, among which those that are too long are counted."""


def train_streamed(
    encoder: DualEncoder,
    corpus: Corpus,
    method: RetrievalConfig,
    training: ValidatedTrainingConfig,
    params: Parameters,
    context: StageContext,
    output: Path,
    readers: int = 2,
) -> dict[str, object]:
    """Train `encoder` on a corpus by the method of the arm, and save it. `readers` processes read ahead for each worker.

    Raises ParameterError for an identity loss or a selection of weights, because a stream has no data for either.
    """
    if training.validate_every:
        raise ParameterError("validate_every: a streamed corpus is its train split alone; set it to null")
    if method.id_weight:
        raise ParameterError(
            f"id_weight = {method.id_weight}: a streamed corpus has no numbered identities; set it to 0"
        )
    captions = int(corpus.sizes.sum())
    counted = list(islice(corpus.captions(), COUNTED))
    cut = count_cut(encoder.tokenizer, counted, "captions at the start of the corpus", context.rank)
    encoder.checkpoint_activations(params.retrieval.gradient_checkpointing)
    task = RetrievalTask(encoder, method.for_arm(context.arm), captions=captions, seed=params.seed)
    print_decoder_start(task)
    with streamed_batches(
        encoder,
        corpus,
        batch=training.batch,
        steps=training.steps,
        context=context,
        readers=readers,
        augmentation=method.augmentation,
    ) as batches:
        fit(task, batches, training, context)
    task.save(output)
    metrics: dict[str, object] = {
        "captions": captions,
        "captions_counted": len(counted),
        "captions_cut": cut,
        "parameters": sum(p.numel() for p in encoder.parameters()),
    }
    if task.masked_by_score is not None:
        metrics["masked_by_score"] = task.masked_by_score
    return metrics
