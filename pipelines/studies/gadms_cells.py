"""The measurements of the GA-DMS study: train and evaluate an encoder, or compare its token scores with the wrong words.

Training is that of the stage `gadms_finetune`, on the training pictures with captions at the cell's noise level.
"""

from typing import Any

from components.gadms.config import ScoringConfig
from components.gadms.model import DualEncoder
from components.gadms.noise_detection import word_auc, word_scores
from components.persons.drawn.lexicon import SYNONYMS, states_fact
from components.persons.drawn.recaptioning import recaptioned
from pipelines.studies.cells import Cell, CellContext
from pipelines.studies.retrieval_cells import DATA, SCHEDULE, captioned, start, trained

__all__ = ["score", "start", "train"]

COLOURS = frozenset(
    word for name, values in SYNONYMS.items() if name.endswith("_colour") for words in values.values() for word in words
)


def train(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Train the start with a method, keep the encoder, and evaluate it; see `retrieval_cells.train` for the results."""
    own = {name: value for name, value in cell.settings.items() if name not in (*DATA, *SCHEDULE)}
    return trained(cell, context, own, keep=True)


def score(cell: Cell, context: CellContext) -> dict[str, Any]:
    """Return the AUC of each score for right over wrong words, on an arm's trained encoder.

    "seen": captions it was trained on (none without noise); "unseen": those of test people, with `unseen_noise`. "_fact": only
    words that state a fact; "_colour": only colour words, whose wrong and right ones have the same frequency and position.
    """
    settings = cell.settings
    (folder,) = context.needs.values()
    encoder = DualEncoder.load(folder / "encoder").to(context.device)
    seen = captioned(settings, context)
    unseen = recaptioned(seen, settings["unseen_noise"], settings["seed"], split="test")
    found: dict[str, Any] = {}
    for kind, people, split in (("seen", seen, "train"), ("unseen", unseen, "test")):
        rows = [row for row in people.rows(split=split, form="long") if row["wrong_words"]][: settings["captions"]]
        for name, config in settings["scores"].items() if rows else ():
            scoring = ScoringConfig(**config)
            words, auc = word_scores(encoder, rows, people, scoring)
            found[f"{kind}/{name}"] = auc
            for part, is_one in (("fact", states_fact), ("colour", _is_colour)):
                among = [is_one(word) for word in words["word"]]
                found[f"{kind}_{part}/{name}"] = word_auc(words["score"], words["wrong"], among)
    return found


def _is_colour(word: str) -> bool:
    return word.strip(".,").lower() in COLOURS
