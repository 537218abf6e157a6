import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class Folder:
    """A dataset folder in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def picture(self, name: str, seed: int) -> str:
        """Write a picture of noise under imgs/; `seed` decides its content."""
        path = self.path / "imgs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(path)
        return name

    def annotate(self, entries: list[dict], file: str = "reid_raw.json") -> Path:
        (self.path / file).write_text(json.dumps(entries))
        return self.path / file


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return Folder(tmp_path / "set")
