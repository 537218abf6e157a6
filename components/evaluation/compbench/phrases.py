"""The questions about a prompt: its noun phrases, and for the action part of complex prompts its text without adjectives.

Both come from spaCy's `en_core_web_sm`, as in the published scripts, or from a file made with it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError, ParameterError

SPACY_MODEL = "en_core_web_sm"
DROPPED = ("top", "the side", "the left", "the right")  # parts of a relation, not things (BLIP_vqa.py)
LIMIT = 8
_REMOVED = re.compile(r'[.!"()*#:;~]')
_WORDS = 50


@dataclass(frozen=True)
class Reading:
    """The noun phrases of a prompt, in order, and its text without adjectives where known."""

    phrases: tuple[str, ...]
    without_adjectives: str | None = None


def questions(phrases: Iterable[str]) -> list[str]:
    """Return BLIP's questions for the noun phrases of a prompt: "a green bench" becomes "a green bench?".

    Four phrases are dropped, exactly as written, and the first eight of the rest are asked (BLIP_vqa.py).
    """
    kept = [phrase for phrase in phrases if phrase not in DROPPED]
    return [cleaned(f"{phrase}?") for phrase in kept[:LIMIT]]


def cleaned(question: str) -> str:
    """Return the question in lower case, without .!"()*#:;~ and trailing spaces, at most 50 words (BLIP's `pre_question`)."""
    text = _REMOVED.sub("", question.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:_WORDS])


def read_phrases(path: Path, prompts: Sequence[str]) -> dict[str, Reading]:
    """Read the readings of `prompts` from a JSON file: prompt -> [phrase, ...], or -> {"phrases": [...], "without_adjectives":
    "..."}.

    Raises DataError for another file, or a missing prompt.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; an object prompt -> list of phrases is needed")
    missing = [prompt for prompt in prompts if prompt not in content]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(prompts)} prompts are not in it, such as {missing[0]!r}; add them"
        )
    return {prompt: _reading(path, prompt, content[prompt]) for prompt in prompts}


def parse_prompts(prompts: Sequence[str]) -> dict[str, Reading]:
    """Parse `prompts` with spaCy, as the published scripts do.

    Raises ParameterError when spaCy or its model is not installed.
    """
    language = _spacy()
    found = {}
    for prompt in prompts:
        document = language(prompt)
        words = [token.text for token in document if token.pos_ != "ADJ"]  # CLIP_similarity.py --complex
        found[prompt] = Reading(tuple(chunk.text for chunk in document.noun_chunks), " ".join(words))
    return found


def spacy_version() -> str:
    """Return the versions of spaCy and its model, on which the phrases depend."""
    import spacy

    return f"spaCy {spacy.__version__}, {SPACY_MODEL} {_spacy().meta.get('version', 'of unknown version')}"


def to_json(readings: Mapping[str, Reading]) -> dict[str, Any]:
    """Return the content of a file for `read_phrases`."""
    return {
        prompt: {"phrases": list(reading.phrases), "without_adjectives": reading.without_adjectives}
        for prompt, reading in readings.items()
    }


def _spacy() -> Any:
    try:
        import spacy

        return spacy.load(SPACY_MODEL)
    except (ImportError, OSError) as error:
        raise ParameterError(
            "noun phrases are needed: give a file of them (--phrases; JSON, prompt -> list of phrases), or install spaCy "
            f"and its model (pip install spacy; python -m spacy download {SPACY_MODEL})"
        ) from error


def _reading(path: Path, prompt: str, value: Any) -> Reading:
    phrases, text = (
        (value.get("phrases"), value.get("without_adjectives")) if isinstance(value, dict) else (value, None)
    )
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise DataError(f"{path}: {prompt!r}: a list of phrases is needed, or an object with one under 'phrases'")
    if text is not None and not isinstance(text, str):
        raise DataError(f"{path}: {prompt!r}: 'without_adjectives' must be text")
    return Reading(tuple(phrases), text)
