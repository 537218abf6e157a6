import pytest
import torch

from components.gadms.model import DualEncoder
from components.gadms.tokenizer import CaptionTokenizer

CAPTIONS = [
    "A man in a red jacket and blue jeans, carrying a black backpack.",
    "The woman wears a green coat.",
    "Someone short with white shoes and a yellow umbrella walks past a wall of brown brick.",
    "man",
]


def tiny_config(layers: int = 3) -> dict:
    return {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [32, 16], "layers": 2, "width": 48, "head_width": 24, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 4, "layers": layers},
    }


@pytest.fixture(scope="session")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.from_corpus(CAPTIONS)


@pytest.fixture
def captions() -> list[str]:
    return CAPTIONS


@pytest.fixture
def config() -> dict:
    return tiny_config()


@pytest.fixture
def encoder(tokenizer: CaptionTokenizer) -> DualEncoder:
    return DualEncoder.create(tiny_config(), tokenizer=tokenizer, seed=3)


@pytest.fixture
def ids(tokenizer: CaptionTokenizer) -> torch.Tensor:
    return tokenizer(CAPTIONS)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(4, 3, 32, 16, generator=torch.Generator().manual_seed(5))
