"""A recipe of pre-training whose every part takes a second."""

from pathlib import Path
from typing import Any

from pipelines.identity.closure import ROOT
from pipelines.schema.reading import read_yaml, to_yaml

STEPS = 4


def small_recipe(steps: int = STEPS) -> dict[str, Any]:
    """The repository's recipe with small models, and `steps` steps for each part."""
    recipe: dict[str, Any] = read_yaml(ROOT / "pretraining" / "recipe.yaml")
    for part in ("autoencoder", "generator", "decoder", "encoder", "probe"):
        section = recipe[f"pretrain_{part}"]
        own = {
            "steps": steps,
            "batch": 4,
            "warmup_steps": 1,
            "report_every": 2,
            "checkpoint_every": 2,
            "ema_decay": 0.5,
        }
        section["training"] = {**section["training"], **own, "grow_at": None}
    recipe["pretrain_autoencoder"] |= {"latent_channels": 2, "channels": [8, 8]}
    recipe["pretrain_generator"] |= {"width": 32, "heads": 2, "single_blocks": 1}
    recipe["pretrain_generator"]["training"] |= {"grow_at": steps // 2, "grow_by": 2}
    recipe["pretrain_decoder"] |= {"sampler_steps": 2, "begin": 1}
    recipe["pretrain_publish"] = {
        "people": 3,
        "pictures": 16,
        "prompts": 8,
        "sampling_seeds": 2,
        "steps": 2,
        "megabytes": 16,
    }
    return recipe


def write_small_recipe(root: Path, steps: int = STEPS) -> None:
    """Write it into a workspace."""
    (root / "pretraining").mkdir(exist_ok=True)
    (root / "pretraining" / "recipe.yaml").write_text(to_yaml(small_recipe(steps)))
