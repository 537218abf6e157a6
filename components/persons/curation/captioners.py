"""Captioners for pictures without captions: a vision-language model, or the grammar of the drawn people."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from components.errors import DataError, ParameterError
from components.persons.curation.templates import TEMPLATES, choose_templates, instruction
from components.persons.drawn.captions import compose
from components.persons.pixels import resized
from components.training.randomness import stream_seed
from components.weight_files.reading import READING_ERRORS, reason


class Captioner(Protocol):
    """Writes captions of pictures."""

    def caption(self, pictures: Sequence[Image.Image], numbers: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions of each RGB picture. Random choices depend on the picture's number and a seed alone."""


class GrammarCaptioner:
    """Captions by the grammar of the drawn people, from predicted attributes.

    `predict` maps uint8 pixels (N, 3, height, width) to one mapping attribute -> value per picture, such as an attribute probe.
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Sequence[Mapping[str, str]]],
        *,
        height: int,
        width: int,
        seed: int,
        count: int = 2,
    ) -> None:
        self._predict, self._size, self._seed, self._count = predict, (height, width), seed, count

    def caption(self, pictures: Sequence[Image.Image], numbers: Sequence[int]) -> list[tuple[str, ...]]:
        shrunk = [resized(picture, *self._size) for picture in pictures]
        if not shrunk:
            return []
        seen = self._predict(torch.from_numpy(np.stack(shrunk)).permute(0, 3, 1, 2).contiguous())
        return [
            tuple(
                compose(_worn(shown), stream_seed(self._seed, "caption", number, i) >> 1).text
                for i in range(self._count)
            )
            for number, shown in zip(numbers, seen, strict=True)
        ]


def _worn(shown: Mapping[str, str]) -> dict[str, str]:
    """Remove the colour of an absent hat or bag, which a classifier predicts all the same."""
    absent = [thing for thing in ("hat", "bag") if shown.get(thing) == "none"]
    return {name: value for name, value in shown.items() if not any(name.startswith(f"{thing}_") for thing in absent)}


class VisionLanguageCaptioner:
    """An image-text-to-text model of transformers (Qwen2.5-VL, LLaVA, ...) from a local folder, prompted with templates.

    Greedy decoding: the same picture and template give the same caption. A batch is one call of the model.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        templates: Sequence[str] = TEMPLATES,
        count: int = 2,
        words: int = 60,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if count < 1 or words < 1:
            raise ParameterError(f"{count} captions of {words} words: both must be at least 1")
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder} holds no vision-language model (config.json); download one and give its folder")
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype=dtype)
        except (ImportError, *READING_ERRORS) as error:
            raise DataError(
                f"{folder} holds no vision-language model that transformers can load: {reason(error)}"
            ) from error
        self._model = model.to(device).eval()
        self._processor.tokenizer.padding_side = "left"  # an answer follows its question
        self._seed, self._templates, self._count, self._words = seed, tuple(templates), count, words

    @torch.no_grad()
    def caption(self, pictures: Sequence[Image.Image], numbers: Sequence[int]) -> list[tuple[str, ...]]:
        chosen = [choose_templates(self._templates, self._seed, number, self._count) for number in numbers]
        written = [
            self._answers(pictures, [instruction(templates[i], self._words) for templates in chosen])
            for i in range(self._count)
        ]
        return list(zip(*written, strict=True)) if pictures else []

    def _answers(self, pictures: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        if not pictures:
            return []
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
            for picture, question in zip(pictures, questions, strict=True)
        ]
        inputs = self._processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        # A word is rarely more than two tokens, punctuation included.
        answered = self._model.generate(**inputs, do_sample=False, max_new_tokens=2 * self._words)
        texts = self._processor.batch_decode(answered[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]
