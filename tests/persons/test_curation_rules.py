"""The rules of curation on hand-made detections, and torchvision's detector from a local file."""

import hashlib
import re

import pytest
import torch
from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.curation.keypoints import HEAD, HIPS, KEYPOINTS, Detection, KeypointRCNN
from components.persons.curation.limits import Rules
from components.persons.curation.rules import (
    FEW_KEYPOINTS,
    NO_HEAD,
    NO_HIP,
    NOBODY,
    REASONS,
    SHAPE,
    SMALL,
    UNSURE,
    person_reason,
    size_reason,
)

RULES = Rules()


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (90, 180, None), (90, 360, None), (89, 200, SMALL), (200, 89, SMALL), (90, 361, SHAPE), (91, 181, SHAPE),
        (90, 179, SHAPE), (1000, 2000, None), (1000, 4000, None), (300, 300, SHAPE),
    ],
)  # fmt: skip
def test_size_and_shape_are_those_of_webperson_with_both_ends_allowed(width, height, reason):
    assert size_reason(width, height, RULES) == reason


def test_limits_can_be_taken_away_but_a_picture_of_nothing_is_too_small():
    assert size_reason(5, 3, Rules(short_side=0, aspect=None)) is None
    assert size_reason(1, 3, Rules(short_side=0, aspect=None)) == SMALL  # prepare refuses it too


def person(*seen, confidence=0.9):
    return Detection((0, 0, 10, 20), confidence, tuple(name in seen for name in KEYPOINTS))


HEADS, ALL_HIPS = [KEYPOINTS[i] for i in HEAD], [KEYPOINTS[i] for i in HIPS]
LIMBS = [name for name in KEYPOINTS if name not in HEADS + ALL_HIPS]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, NOBODY),
        (person(*KEYPOINTS), None),
        (person(*KEYPOINTS, confidence=0.85), UNSURE),
        (person(*KEYPOINTS, confidence=0.851), None),
        (person("nose", "left_ear", "right_hip", *LIMBS[:5]), None),  # 8 with one hip and two of the head: enough
        (person("nose", "left_ear", "right_hip", *LIMBS[:4]), FEW_KEYPOINTS),
        (person(*HEADS, *LIMBS), NO_HIP),
        (person("nose", *ALL_HIPS, *LIMBS), NO_HEAD),
        (person("left_eye", "right_eye", *ALL_HIPS, *LIMBS), None),
        (person(*ALL_HIPS, *LIMBS), NO_HEAD),
        (person(confidence=0.1), UNSURE),
    ],
)
def test_a_person_is_kept_when_enough_of_them_is_seen(found, reason):
    assert person_reason(found, RULES) == reason
    assert reason is None or reason in REASONS


def test_the_keypoints_are_cocos():
    assert [KEYPOINTS[i] for i in HIPS] == ["left_hip", "right_hip"]
    assert HEADS == ["nose", "left_eye", "right_eye", "left_ear", "right_ear"]
    assert len(KEYPOINTS) == 17
    with pytest.raises(ParameterError, match="16 keypoints"):
        Detection((0, 0, 1, 1), 0.9, (True,) * 16)


@pytest.mark.parametrize(
    "limits",
    [
        {"aspect": (0.5, 0.25)},
        {"aspect": (0.0, 1.0)},
        {"keypoints": 18},
        {"hips": 3},
        {"head": -1},
        {"confidence": 1.0},
    ],
)
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ParameterError, match=next(iter(limits))):
        Rules(**limits)


def published(key):
    """The name of a weight in the published file, which is older than torchvision 0.13."""
    for part in ("inner_blocks", "layer_blocks"):
        key = re.sub(rf"(fpn\.{part}\.\d)\.0\.", r"\1.", key)
    return key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the keys and shapes of torchvision's, of random values; it was saved with frozen normalisation layers."""
    from torchvision.models.detection import keypointrcnn_resnet50_fpn

    with torch.device("meta"):
        whole = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    shapes = {key: value.shape for key, value in whole.items() if not key.endswith("num_batches_tracked")}
    random = torch.Generator().manual_seed(0)

    def values(shape):
        drawn = torch.rand(shape, generator=random)
        return (drawn - 0.5) * (12 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else 0.5 + drawn

    state = {published(key): values(shape) for key, shape in shapes.items()}
    assert "backbone.fpn.inner_blocks.0.weight" in state
    assert "rpn.head.conv.weight" in state
    path = tmp_path_factory.mktemp("weights") / "keypointrcnn.pth"
    torch.save(state, path)
    return path


def test_the_detector_reads_torchvisions_file_and_tells_what_torchvision_finds(weights):
    stored = torch.load(weights, weights_only=True)
    detector = KeypointRCNN(weights, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    model = detector._model
    loaded = {published(key): value for key, value in model.state_dict().items()}
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[key], stored[key]) for key in stored)
    model.transform.min_size, model.roi_heads.score_thresh = (64,), 0.0  # small; and random weights are sure of nothing
    model.roi_heads.detections_per_img, model.rpn._post_nms_top_n = 3, {"training": 9, "testing": 9}
    picture = Image.effect_noise((48, 96), 80).convert("RGB")
    (people,) = detector.detect([picture])
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(96, 48, 3).permute(2, 0, 1) / 255
    with torch.no_grad():
        (expected,) = model([pixels])
    assert people
    assert [list(found.box) for found in people] == expected["boxes"].tolist()
    assert [found.confidence for found in people] == expected["scores"].tolist()
    assert [list(found.visible) for found in people] == (expected["keypoints_scores"] >= 2).tolist()


def test_weights_that_are_not_the_detectors_are_refused_in_one_line(weights, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "y.pth").write_bytes(b"no weights")
    torch.save({"code": print}, tmp_path / "z.pth")
    for path, sha256, says in (
        (tmp_path / "nowhere.pth", None, "no detector weights"),
        (tmp_path / "x.safetensors", None, "holds other weights"),
        (tmp_path / "y.pth", None, "not a file of weights"),
        (tmp_path / "z.pth", None, "holds an object of the type print"),
        (weights, "0" * 64, "has the SHA-256"),
    ):
        with pytest.raises(DataError, match=says) as error:
            KeypointRCNN(path, sha256=sha256)
        assert "\n" not in str(error.value)
