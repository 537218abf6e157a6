"""What the benchmark of search says of its vectors is so."""

import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/clustered_vectors.py"


def test_the_vectors_are_clustered_as_described_and_follow_from_their_seed():
    kind = runpy.run_path(str(SCRIPT))["Generator"]
    pictures, sentences = np.concatenate(list(kind(8_400).pictures())), kind(8_400).sentences(100)
    assert pictures.shape == (8_400, 512)
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 1, atol=1e-5)
    some = pictures[:200]
    products = some @ pictures.T
    assert float(np.mean(products[:, 4_000:])) == pytest.approx(0.5, abs=0.03)
    products[np.arange(200), np.arange(200)] = -1
    assert float(products.max(axis=1).mean()) == pytest.approx(0.87, abs=0.02)
    same_person = (products.argmax(axis=1) // 4 == np.arange(200) // 4).mean()
    assert same_person > 0.8
    assert float((sentences @ pictures.T).max(axis=1).mean()) == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(kind(8_400).sentences(100), sentences)
    np.testing.assert_array_equal(next(kind(8_400).pictures())[-400:], pictures[-400:])
