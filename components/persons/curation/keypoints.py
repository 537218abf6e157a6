"""Detection of people and their keypoints: the interface that curation needs, and torchvision's keypoint R-CNN.

The GA-DMS paper uses YOLOv11 and YOLOv11-Pose, whose keypoints are COCO's too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.weight_files.reading import read_state, require_finite

KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
    "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
"""COCO's keypoints, in its order."""
HEAD, HIPS = range(5), range(11, 13)


@dataclass(frozen=True)
class Detection:
    """A detected person. box: left, top, right, bottom in pixels. confidence: 0 to 1. visible: one flag per keypoint."""

    box: tuple[float, float, float, float]
    confidence: float
    visible: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.visible) != len(KEYPOINTS):
            raise ParameterError(
                f"a detection has {len(self.visible)} keypoints; expected the {len(KEYPOINTS)} of COCO"
            )


class Detector(Protocol):
    """Detects people."""

    def detect(self, pictures: Sequence[Image.Image]) -> list[list[Detection]]:
        """Return the people in each RGB picture, by falling confidence."""


class KeypointRCNN:
    """torchvision's keypointrcnn_resnet50_fpn with weights of a local file; nothing is downloaded.

    `weights`: a state dict as torchvision distributes it (keypointrcnn_resnet50_fpn_coco-fc266e95.pth), or the same as
    .safetensors. `sha256`, if given, must match the file. `min_logit`: heat-map logit from which a keypoint is visible. Neither
    torchvision nor the paper states one; Detectron, the origin of the model, draws keypoints from 2.
    """

    def __init__(
        self, weights: Path, *, sha256: str | None = None, min_logit: float = 2.0, device: torch.device | str = "cpu"
    ) -> None:
        state = _read_state(weights, sha256)
        self._model = _published_model()
        try:
            self._model.load_state_dict(state)
        except RuntimeError as error:
            message = " ".join(str(error).split())[:200]
            raise DataError(
                f"{weights} holds other weights than torchvision's keypointrcnn_resnet50_fpn: {message}"
            ) from None
        self._model.to(device).eval()
        self._min_logit, self._device = min_logit, torch.device(device)

    @torch.no_grad()
    def detect(self, pictures: Sequence[Image.Image]) -> list[list[Detection]]:
        tensors = [torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(self._device) / 255 for picture in pictures]
        return [self._people(found) for found in self._model(tensors)]

    def _people(self, found: dict[str, torch.Tensor]) -> list[Detection]:
        """torchvision sorts by falling confidence."""
        rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["keypoints_scores"].tolist(), strict=True)
        return [
            Detection((box[0], box[1], box[2], box[3]), score, tuple(logit >= self._min_logit for logit in logits))
            for box, score, logits in rows
        ]


def _published_model() -> Any:
    """The model that keypointrcnn_resnet50_fpn builds for its default weights (COCO_V1).

    Without weights it builds other normalisation layers, with another epsilon, and finds other keypoints with the same weights.
    """
    from torchvision.models.detection import keypoint_rcnn
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
    model = keypoint_rcnn.KeypointRCNN(backbone, num_classes=2, num_keypoints=len(KEYPOINTS))
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    return model


def _read_state(weights: Path, sha256: str | None) -> dict[str, Any]:
    if not weights.is_file():
        raise DataError(f"{weights}: no detector weights there; see curate.detector")
    digest = file_digest(weights)
    if sha256 and digest != sha256:
        raise DataError(f"{weights} has the SHA-256 {digest}; expected is {sha256}: give the right file or digest")
    state = read_state(weights)
    require_finite(state, weights)
    return state
