"""GA-DMS (arXiv 2509.09118): CLIP for person retrieval, robust to wrong words in the captions it learns from."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "CaptionTokenizer": "tokenizer",
    "token_word_alignment": "tokenizer",
    "wrong_token_mask": "tokenizer",
    "DualEncoder": "model",
    "CrossModalDecoder": "decoder",
    "gradient_attention_scores": "scores.scoring",
    "ScoringConfig": "config",
    "token_scores": "scores.scoring",
    "word_scores": "noise_detection",
    "CaptionScorer": "caption_scorer",
    "dual_mask": "masking",
    "MaskingConfig": "config",
    "ScoreTable": "score_memory",
    "RetrievalTask": "tasks",
    "RetrievalConfig": "methods",
    "METHODS": "methods",
    "read_published": "published",
    "pretrained_encoder": "published",
    "CaptionBatches": "batches",
    "embed_captions": "embedding",
    "embed_images": "embedding",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
