"""BLIP-VQA, T2I-CompBench's metric of attributes: BLIP is asked about each noun phrase of the prompt, and the answers are
multiplied.

As in BLIPvqa_eval (models/blip_vqa.py `vqa_prob`): the question starts with BLIP's [ENC] token, the decoder gets its start token
alone, and with its logits l over the next token

    P(yes) = p(yes) / (p(yes) + p(no)) = sigmoid(l[yes] - l[no]).

The weights are those of the paper, `model_base_vqa_capfilt_large`, in the form of transformers. transformers itself would start
the question with [CLS], and its conversion resized the position embedding from the script's 480 pixels to 384.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from components.errors import DataError, ParameterError
from components.evaluation.compbench.phrases import questions
from components.evaluation.compbench.pictures import Progress, PromptPicture, open_picture
from components.persons.transforms import normalise
from components.weight_files.reading import READING_ERRORS, reason

PUBLISHED_SIZE = 480  # pixels, configs/vqa.yaml
MAX_TOKENS = 35  # of a question
HOW_TO_GET = "download Salesforce/blip-vqa-capfilt-large from the Hugging Face hub into a folder and name it"
BATCH = 16  # pictures


class BlipVqa:
    """A BlipForQuestionAnswering that computes P(yes). `image_size` in pixels, by default the model's."""

    def __init__(self, model: Any, tokenizer: Any, image_size: int | None = None) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        own = model.config.vision_config.image_size
        self.image_size = image_size or own
        patch = model.config.vision_config.patch_size
        if self.image_size % patch or self.image_size < patch:
            raise ParameterError(f"BLIP at {self.image_size} pixels: must be a multiple of the patch size {patch}")
        self._resize_positions = self.image_size != own
        self._start = model.config.text_config.bos_token_id
        self._encode = _encode_token(model, tokenizer)
        self._yes, self._no = (_word(tokenizer, word) for word in ("yes", "no"))

    @classmethod
    def open(cls, folder: Path, *, image_size: int | None = None, device: str = "cpu") -> "BlipVqa":
        """Read a folder written by `save_pretrained`, without network access.

        Raises DataError when it is missing, or not a complete BLIP for questions: missing weights would be random.
        """
        from transformers import AutoTokenizer, BlipForQuestionAnswering
        from transformers.utils import logging

        if not (folder / "config.json").is_file():
            raise DataError(f"{folder}: no BLIP there (config.json is missing); {HOW_TO_GET}")
        logging.disable_progress_bar()
        try:
            model, loading = BlipForQuestionAnswering.from_pretrained(
                folder, local_files_only=True, weights_only=True, output_loading_info=True, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (TypeError, *READING_ERRORS) as error:
            raise DataError(f"{folder}: cannot be read as BLIP ({reason(error)}); {HOW_TO_GET}") from error
        lacking = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
        if lacking:
            raise DataError(
                f"{folder}: not a BlipForQuestionAnswering ({len(lacking)} weights missing, {lacking[0]}); {HOW_TO_GET}"
            )
        return cls(model.to(device), tokenizer, image_size)

    def probabilities(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[str]]
    ) -> list[NDArray[np.float32]]:
        """Compute P(yes) of each picture's questions: one array (questions,) per picture, encoding each picture once."""
        owners = [place for place, own in enumerate(asked) for _ in own]
        texts = [question for own in asked for question in own]
        if not texts:
            return [np.empty(0, np.float32) for _ in asked]
        yes = self._ask(torch.stack([self._pixels(picture) for picture in pictures]), owners, texts).numpy()
        ends = np.cumsum([len(own) for own in asked])[:-1]
        return list(np.split(yes, ends))

    @torch.no_grad()
    def _ask(self, pixels: Tensor, owners: list[int], texts: list[str]) -> Tensor:
        """P(yes), (Q,), of Q questions about pixels (B, 3, S, S); `owners` (Q,) say which picture each is about."""
        seen = self.model.vision_model(
            pixel_values=pixels.to(self.model.device), interpolate_pos_encoding=self._resize_positions
        ).last_hidden_state  # (B, 1 + P, D)
        tokens = self.tokenizer(texts, truncation=True, max_length=MAX_TOKENS).input_ids
        places: dict[int, list[int]] = {}
        for place, ids in enumerate(tokens):
            places.setdefault(len(ids), []).append(place)
        found = torch.empty(len(texts))
        # Questions of one length at a time: transformers drops the mask of cross-attention, and the decoder would read padding.
        for own in places.values():
            found[own] = self._first_answer(
                seen[[owners[place] for place in own]], torch.tensor([tokens[place] for place in own])
            )
        return found

    def _first_answer(self, seen: Tensor, ids: Tensor) -> Tensor:
        """P(yes), (Q,), of questions ids (Q, L) about pictures seen as (Q, 1 + P, D)."""
        ids = ids.to(seen.device)
        ids[:, 0] = self._encode
        question = self.model.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state  # (Q, L, D)
        start = torch.full((len(ids), 1), self._start, device=seen.device)
        logits = self.model.text_decoder(input_ids=start, encoder_hidden_states=question).logits[:, 0]  # (Q, V)
        return torch.sigmoid(logits[:, self._yes] - logits[:, self._no]).float().cpu()

    def _pixels(self, picture: Image.Image) -> Tensor:
        """(3, S, S): squashed to a square by PIL's bicubic filter, as the script does, and normalised."""
        resized = picture.convert("RGB").resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        return normalise(torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None])[0]


def vqa_score(probabilities: Iterable[float]) -> float:
    """Return the score of a picture: the product of its P(yes), 1 without questions.

    Factors and product are rounded to four decimals and multiplied in float32, because the scripts pass them as text.
    """
    product = np.float32(1)
    for probability in probabilities:
        product *= np.float32(f"{float(probability):.4f}")
    return float(f"{float(product):.4f}")


def score_pictures(
    blip: BlipVqa,
    pictures: Sequence[PromptPicture],
    phrases: dict[str, tuple[str, ...]],
    *,
    batch: int = BATCH,
    progress: Progress = iter,
) -> NDArray[np.float64]:
    """Return the BLIP-VQA score of every picture, (N,), given the noun phrases of each prompt."""
    asked = {prompt: questions(phrases[prompt]) for prompt in {picture.prompt for picture in pictures}}
    scores: list[float] = []
    for begin in progress(range(0, len(pictures), batch)):
        part = pictures[begin : begin + batch]
        answers = blip.probabilities([open_picture(one) for one in part], [asked[one.prompt] for one in part])
        scores += [vqa_score(answer) for answer in answers]
    return np.array(scores)


def _encode_token(model: Any, tokenizer: Any) -> int:
    """The id of [ENC]. BLIP added it right after [DEC], its start token; published tokenizer files name neither."""
    named = tokenizer.convert_tokens_to_ids("[ENC]")
    if named is not None and named != tokenizer.unk_token_id:
        return int(named)
    encode = int(model.config.text_config.bos_token_id) + 1
    if encode >= model.config.text_config.vocab_size:
        raise DataError(
            f"BLIP's vocabulary has {model.config.text_config.vocab_size} tokens and no [ENC] after its start token "
            f"{encode - 1}; {HOW_TO_GET}"
        )
    return encode


def _word(tokenizer: Any, word: str) -> int:
    found = tokenizer.convert_tokens_to_ids(word)
    if found is None or found == tokenizer.unk_token_id:
        raise DataError(f"BLIP's tokenizer does not know the word {word!r}; {HOW_TO_GET}")
    return int(found)
