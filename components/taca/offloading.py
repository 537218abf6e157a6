"""Where a pipeline's weights wait while they are not used.

    none     every part is on the device
    model    one part at a time: text encoders, then the transformer, then the VAE; the others wait in the host's memory
    group    one layer at a time, and on a GPU the next one while this one computes: little memory, and more time

Pictures do not depend on it: the same kernels see the same numbers.
"""

from typing import Any

import torch

from components.errors import ParameterError
from components.taca.memory_options import Offload

LEAST_FIRST: tuple[Offload, ...] = ("none", "model", "group")


def require_offloading(offload: Offload, device: torch.device) -> None:
    """Raise `ParameterError` for offloading without a GPU."""
    if offload != "none" and device.type == "cpu":
        raise ParameterError(
            f"offload {offload}: nothing to move weights from, as this runs on the CPU; use offload none, or a GPU"
        )


def place(pipe: Any, device: torch.device, offload: Offload = "none") -> Any:
    """Bring a pipeline to `device`, by diffusers' own offloading where asked for, and return it.

    LoRAs are loaded before, so that their layers move too. On a CPU every path runs (as tests do) and moves nothing. Raises
    `ParameterError` for a pipeline that diffusers cannot offload.
    """
    if offload == "none":
        return pipe.to(device)
    try:
        if offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.enable_group_offload(
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=device.type == "cuda",
            )
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ParameterError(f"offload {offload}: not possible for {type(pipe).__name__} ({reason})") from error
    return pipe
