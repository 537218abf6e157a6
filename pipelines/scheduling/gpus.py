"""The GPUs that stages on this machine can be given."""

import os
import re
import shutil
import subprocess

NVIDIA_SECONDS = 20.0


def usable_gpus() -> tuple[str, ...]:
    """Return the NVIDIA GPUs, or their MIG parts, that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None or (chosen is not None and not chosen.strip()):
        return ()
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):  # a program without its driver
        return ()
    found = _ids_in(listed.stdout)
    if chosen is None or not found:
        return found
    names = [name.strip() for name in chosen.split(",")]
    return tuple(names[: names.index("-1")] if "-1" in names else names)  # CUDA ignores what follows a wrong one


def _ids_in(listed: str) -> tuple[str, ...]:
    """Return the ids in what `nvidia-smi -L` prints; a GPU that is divided is named by its parts."""
    found: list[str] = []
    for identity in re.findall(r"\(UUID: ((?:GPU|MIG)-[^)]+)\)", listed):
        if identity.startswith("MIG-") and found and found[-1].startswith("GPU-"):
            found.pop()
        found.append(identity)
    return tuple(found)
