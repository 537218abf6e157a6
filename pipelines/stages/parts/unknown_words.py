"""Says which words of a set's captions a published model with a vocabulary of whole words does not know."""

import json
from pathlib import Path

from components.persons.drawn.words import unknown_words
from components.persons.prompts import prompt_form
from components.persons.shards import PersonDataset


def print_unknown_words(model: Path, people: PersonDataset) -> None:
    """Print one line on the words of the prompts of `people` that a pipeline folder's tokenizer marks as unknown, if there are any.

    Tokenizers of word pieces know every word.
    """
    for file in sorted(model.glob("tokenizer*/tokenizer.json")):
        found = json.loads(file.read_text(encoding="utf-8"))["model"]
        if found.get("type") == "WordLevel":
            if line := unknown_words(people.rows(form=prompt_form(people)).column("caption"), found["vocab"]):
                print(f"{model.name}: {line}", flush=True)
            return
