"""Base models in fewer bits a weight, by diffusers' own configs: weights quantised while they are read, and GGUF files.

    int8    torchao, a scale for each output channel            1 byte a weight
    fp8     torchao, float8 e4m3, a scale for each channel      1 byte a weight; a GPU of compute capability 8.9 or above
    nf4     bitsandbytes, 4 bits in blocks of 64                0.56 bytes a weight; needs the package, and a GPU
    GGUF    the transformer from a file of llama.cpp's format   as the file says (Q8_0 1.06, Q4_K 0.56)

The linear layers of the transformer and of the large text encoders are quantised; CLIP's encoders and the VAE are small and stay as
they are. Computation is in bfloat16. A LoRA lies over quantised layers as over others, but cannot be merged into them.
"""

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from components.errors import DataError, ParameterError
from components.taca.memory_options import Offload, Quantization

if TYPE_CHECKING:
    from components.taca.pipeline_folder import PipelineFolder

_GGUF_MAGIC = b"GGUF"


def require_quantizable(quantize: Quantization, dtype: torch.dtype, offload: Offload = "none") -> None:
    """Raise `ParameterError` for settings that do not go together, and for a package that is not installed."""
    if quantize == "none":
        return
    if dtype != torch.bfloat16:
        raise ParameterError(f"quantize {quantize}: computes in bfloat16 only, not in {_name(dtype)}; set dtype bf16")
    if quantize == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise ParameterError(
            "quantize nf4: needs the package bitsandbytes, which is not installed (`pip install bitsandbytes`); or use int8, or a "
            "GGUF file"
        )
    if quantize == "nf4" and offload == "group":
        raise ParameterError(
            "quantize nf4 with offload group: bitsandbytes keeps state beside its weights, which is not moved layer by layer; use "
            "offload model, or quantize int8"
        )


def quantization_of(quantize: Quantization, folder: "PipelineFolder", parts: Iterable[str]) -> Any:
    """Return diffusers' `PipelineQuantizationConfig` for those of `parts` that are quantised; None where that is none of them."""
    if quantize == "none":
        return None
    mapping = {part: _config(quantize, library) for part in sorted(parts) if (library := _library(folder, part))}
    if not mapping:
        return None
    from diffusers import PipelineQuantizationConfig

    return PipelineQuantizationConfig(quant_mapping=mapping)


def read_gguf(file: Path, folder: Path, transformer: str, dtype: torch.dtype) -> Any:
    """Read a transformer of the class `transformer` from a GGUF file; its config is in `folder`/transformer.

    Its layers stay quantised and compute in `dtype`. Keys are diffusers' names or those of the model's own code, as far as
    diffusers converts the class. Raises `DataError` for a file that is not GGUF or not of this model, and a class that
    diffusers does not read.
    """
    import diffusers

    require_gguf(file)
    kind = getattr(diffusers, transformer)
    if not hasattr(kind, "from_single_file"):
        raise DataError(f"{file}: diffusers reads no single file of {transformer}; use quantize int8 instead")
    try:
        return kind.from_single_file(
            str(file),
            config=str(folder),
            subfolder="transformer",
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
            dtype=dtype,
            local_files_only=True,
        )
    except (OSError, ValueError, LookupError, RuntimeError, AttributeError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{file}: cannot be read as a {transformer} ({type(error).__name__}: {reason})") from error


def require_gguf(file: Path) -> None:
    """Raise `DataError` unless the file begins as a GGUF file does."""
    try:
        with open(file, "rb") as opened:
            magic = opened.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror or error}); give the GGUF file of a transformer"
        ) from error
    if magic != _GGUF_MAGIC:
        raise DataError(f"{file}: not a GGUF file; other weights belong into the model's folder")


def is_small_encoder(name: str) -> bool:
    """Whether text encoders of a class are small, and are not quantised."""
    return name.startswith("CLIP")


def is_quantized(model: Any) -> bool:
    """Whether a model was read in fewer bits."""
    return getattr(model, "hf_quantizer", None) is not None


def _library(folder: "PipelineFolder", part: str) -> str | None:
    """Return the library of a part that is quantised, "diffusers" or "transformers"; None for one that is not."""
    library, name = (folder.index.get(part) or [None, None])[:2]
    if part == "transformer":
        return "diffusers"
    is_encoder = part.startswith("text_encoder") and library == "transformers"
    return "transformers" if is_encoder and not is_small_encoder(str(name)) else None


def _config(quantize: Quantization, library: str) -> Any:
    """Return the config class of the library that loads the part, for one kind of quantisation."""
    module = importlib.import_module(library)
    if quantize == "nf4":
        return module.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return module.TorchAoConfig(Int8WeightOnlyConfig() if quantize == "int8" else Float8WeightOnlyConfig())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
