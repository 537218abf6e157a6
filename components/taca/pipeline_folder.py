"""A pipeline folder of diffusers: a sub-folder per part, and `model_index.json`, which names their classes.

    model_index.json                                            {"_class_name": "FluxPipeline", "vae": ["diffusers", ...], ...}
    vae/config.json, diffusion_pytorch_model.safetensors        a part in one file
    transformer/diffusion_pytorch_model.safetensors.index.json  a part in shards: which weight is in which file
    transformer/diffusion_pytorch_model-00001-of-00003.safetensors
    text_encoder/model.fp16.safetensors                         weights in a variant, often beside the plain ones

Finds the files that loading will read, and checks that all are there, without loading them.
"""

import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from components.errors import DataError
from components.taca.families import Conventions
from components.taca.registry import CONVENTIONS, FAMILIES

INDEX = "model_index.json"


class PipelineFolder:
    """Reads the index. Raises `DataError` if there is none, or its pipeline class is not supported.

    pipeline: its class, as the index names it: one with conventions of its own (`FluxPipeline`), or another over the same
    transformer (`FluxFillPipeline`, `FluxImg2ImgPipeline`), which has the conventions of that transformer's family.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = self._json(INDEX)
        self.pipeline = str(self.index.get("_class_name"))
        found = CONVENTIONS.get(self.pipeline) or self._conventions_of_transformer()
        if found is None:
            raise DataError(f"{path}/{INDEX}: a {self.pipeline}; supported are {', '.join(CONVENTIONS)}")
        self.conventions: Conventions = found

    @property
    def transformer(self) -> str:
        """The class of the transformer."""
        return str((self.index.get("transformer") or [None, None])[1])

    @property
    def named(self) -> set[str]:
        """Every part that the pipeline class or this index names, present or not."""
        listed = {name for name, value in self.index.items() if isinstance(value, list) and not name.startswith("_")}
        return listed | set(self.conventions.parts)

    @property
    def parts(self) -> set[str]:
        """The supported parts that are present; [null, null] in the index marks one that is not."""
        own = self.conventions.parts if self.pipeline == self.conventions.pipeline else self.named
        return {part for part in own if (self.index.get(part) or [None])[0] is not None}

    def parts_for(self, wanted: Iterable[str]) -> set[str]:
        """Return the parts to load for `wanted`: those present, and the fallback of a missing encoder. Parts that only this class
        has (a processor of pictures) come with the transformer."""
        chosen, conventions = set(wanted) & self.parts, self.conventions
        if "transformer" in chosen:
            chosen |= self.parts - set(conventions.parts)
        if conventions.encoder_fallback and chosen & set(conventions.text_parts):
            encoder, fallback = conventions.encoder_fallback
            if encoder not in self.parts:
                chosen.add(fallback)
        return chosen

    def files(self) -> list[str]:
        """Return the index and every file of every part, sorted, as relative POSIX paths. Raises `DataError` for a missing part or
        shard."""
        found = [file for part in self.parts for file in (self.path / part).rglob("*") if file.is_file()]
        names = sorted(file.relative_to(self.path).as_posix() for file in found)
        self._check_whole(names, self.parts)
        return [INDEX, *names]

    def files_read(self, listed: Iterable[str], parts: set[str]) -> tuple[list[str], str | None]:
        """Return those of the files `listed` that loading `parts` reads, and the variant: None, or "fp16" if some part has no
        plain weights.

        Raises `DataError` for a part or shard that is not listed, and for parts in different variants.
        """
        names = [name for name in listed if _part(name) in parts]
        variants: dict[str, set[str | None]] = {}
        for name in filter(_is_weights, names):
            variants.setdefault(_part(name), set()).add(_variant(name))
        needed = sorted({str(found) for held in variants.values() if None not in held for found in held})
        if len(needed) > 1:
            raise DataError(f"{self.path}: has weights in the variants {', '.join(needed)}; keep one of them")
        chosen = needed[0] if needed else None
        read = [
            name
            for name in names
            if not _is_weights(name) or _variant(name) == (chosen if chosen in variants[_part(name)] else None)
        ]
        self._check_whole(read, parts)
        return read, chosen

    def _conventions_of_transformer(self) -> Conventions | None:
        """Return the conventions of the transformer's family, if diffusers has the pipeline class for this transformer."""
        import diffusers

        family, kind = FAMILIES.get(self.transformer), getattr(diffusers, self.pipeline, None)
        if family is None or not isinstance(kind, type):
            return None
        taken = inspect.signature(kind).parameters.get("transformer")
        return family.conventions if taken and self.transformer in str(taken.annotation) else None

    def _check_whole(self, names: list[str], parts: set[str]) -> None:
        """Raise `DataError` for a part without any file among `names`, or a shard that an index names and they do not."""
        if missing := sorted(parts - {_part(name) for name in names}):
            raise DataError(
                f"{self.path}: {INDEX} names {missing[0]}, but none of its files is there or in the model reference; download "
                f'the model whole, or write "{missing[0]}": [null, null] there to go without'
            )
        for name in names:
            if ".safetensors.index" not in name:
                continue
            weights = self._json(name).get("weight_map")
            if not isinstance(weights, dict):
                raise DataError(f"{self.path / name}: has no weight_map, so it is not an index of sharded weights")
            # A name that leads out of the folder is never among the listed ones either.
            if missing := sorted(
                {str(shard) for shard in weights.values()} - {_inside(name, other) for other in names}
            ):
                raise DataError(
                    f"{self.path / name}: names {missing[0]}, which is not there or not in the model reference; download "
                    "the model whole, and write a new reference"
                )

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{self.path}: no {name}, so this is not a diffusers pipeline") from None
        except ValueError as error:
            raise DataError(f"{self.path / name}: not JSON ({error})") from None
        if not isinstance(found, dict):
            raise DataError(f"{self.path / name}: must hold a mapping")
        return found


def _part(name: str) -> str:
    return name.split("/", 1)[0] if "/" in name else ""


def _inside(index: str, name: str) -> str | None:
    """Return the file name of `name` if it is in the folder of `index`."""
    found = PurePosixPath(name)
    return found.name if found.parent == PurePosixPath(index).parent else None


def _is_weights(name: str) -> bool:
    return ".safetensors" in name


def _variant(name: str) -> str | None:
    """Return the variant in a file name: "fp16" of model.fp16-00001-of-00002.safetensors; None if it has none."""
    words = re.sub(r"-\d{5}-of-\d{5}", "", PurePosixPath(name).name).split(".")
    others = [
        word for word in words if word not in ("model", "diffusion_pytorch_model", "safetensors", "index", "json")
    ]
    return others[0] if others else None
