"""Accuracy of the attribute probe on held-out real pictures."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from components.evaluation.probe.model import MISSING, AttributeProbe


def evaluate_probe(probe: AttributeProbe, pixels: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Evaluate the probe on held-out real pictures: name -> percentages and the number of pictures.

    balanced_accuracy: mean recall over the values that occur; accuracy; majority: accuracy of always predicting the most common
    value. An attribute that no picture states is left out.
    """
    predicted = probe.predict(pixels).numpy()
    table: dict[str, dict[str, float]] = {}
    for column, name in enumerate(probe.attributes):
        truth = labels[:, column].numpy()
        stated = truth != MISSING
        if not stated.any():
            continue
        table[name] = {
            "balanced_accuracy": 100 * balanced_accuracy(truth[stated], predicted[stated, column]),
            "accuracy": 100 * float((truth[stated] == predicted[stated, column]).mean()),
            "majority": 100 * float(np.bincount(truth[stated]).max() / stated.sum()),
            "pictures": int(stated.sum()),
        }
    return table


def balanced_accuracy(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Return the mean recall over the classes in `truth` (N,) of the predictions (N,)."""
    classes, class_of = np.unique(truth, return_inverse=True)
    right = np.bincount(class_of, weights=(truth == predicted).astype(np.float64), minlength=len(classes))
    return float((right / np.bincount(class_of)).mean())
