"""GA-DMS (arXiv 2509.09118): CLIP for person retrieval, robust to wrong words in the captions it learns from."""

from typing import Any

from components.exports import all_names, find

_PUBLIC = {
    "batches": ("CaptionBatches",),
    "caption_scorer": ("CaptionScorer",),
    "config": ("MaskingConfig", "ScoringConfig"),
    "decoder": ("CrossModalDecoder",),
    "embedding": ("embed_captions", "embed_images"),
    "masking": ("dual_mask",),
    "methods": ("METHODS", "RetrievalConfig"),
    "model": ("DualEncoder",),
    "noise_detection": ("word_scores",),
    "published": ("pretrained_encoder", "read_published"),
    "score_memory": ("ScoreTable",),
    "scores.scoring": ("gradient_attention_scores", "token_scores"),
    "tasks": ("RetrievalTask",),
    "tokenizer": ("CaptionTokenizer", "token_word_alignment", "word_token_mask"),
}
__all__ = all_names(_PUBLIC)


def __getattr__(name: str) -> Any:
    return find(__name__, _PUBLIC, name)
