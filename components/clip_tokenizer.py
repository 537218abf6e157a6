"""CLIP's byte-pair tokenizer from open_clip, for sentences that people wrote: no sentence holds a special token."""

from typing import Any


def clip_tokenizer(context_length: int) -> Any:
    """Return open_clip's tokenizer, which reads a literal "<end_of_text>" or "<start_of_text>" as text.

    open_clip reads them as the special tokens, and the model then takes the first of them for the end of the sentence.
    """
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=context_length)
    specials = [tokenizer.decoder[token] for token in tokenizer.all_special_ids]
    cleaned = tokenizer.clean_fn

    def clean(text: str) -> str:
        text = cleaned(text)
        for special in specials:  # "<" is a token of its own before a letter, so the space changes no other token
            text = text.replace(special, f"{special[0]} {special[1:]}")
        return text

    tokenizer.clean_fn = clean
    return tokenizer
