"""Result files of the published scripts: read for UniDet, which is not measured here, and written for the other metrics.

    <category's folder>/samples/<prompt>_<number>.png
    <category's folder>/annotation_blip/vqa_result.json, blip_vqa_score.txt
    <category's folder>/annotation_clip/vqa_result.json, score_avg.txt
    <category's folder>/annotation_3_in_1/vqa_result.json, vqa_score.txt
    <category's folder>/labels/annotation_obj_detection_2d/vqa_result.json     UniDet

Each vqa_result.json is a list of {"question_id", "answer"}. The id is the position of the picture in the order of
numbers; in UniDet's files it is the number.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError
from components.evaluation.compbench.pictures import PromptPicture
from components.evaluation.compbench.prompts import BLIP_VQA, CLIP_SCORE, THREE_IN_ONE
from components.files import write_atomically

UNIDET_FILE = Path("labels") / "annotation_obj_detection_2d" / "vqa_result.json"
_RESULT = "vqa_result.json"
# metric -> folder, file of the mean, words before it
_WRITTEN = {
    BLIP_VQA: ("annotation_blip", "blip_vqa_score.txt", "BLIP-VQA score:"),
    CLIP_SCORE: ("annotation_clip", "score_avg.txt", "score avg:"),
    THREE_IN_ONE: ("annotation_3_in_1", "vqa_score.txt", "score avg:"),
}


def read_unidet(file: Path, pictures: Sequence[PromptPicture]) -> NDArray[np.float64]:
    """Read UniDet's score of every picture, (N,), from a file of UniDet_eval/2D_spatial_eval.py.

    Raises DataError for another file, a picture without a score, or two pictures with one number.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        scores = {int(row["question_id"]): float(row["answer"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not a UniDet result, a list of {{question_id, answer}} ({error!r})") from error
    if len(scores) != len(rows) or not all(0 <= score <= 1 for score in scores.values()):
        raise DataError(
            f"{file}: a number is there twice, or a score lies outside [0, 1]; run 2D_spatial_eval.py again"
        )
    number, count = Counter(picture.number for picture in pictures).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{file}: {count} pictures have number {number}, so its scores cannot be told apart; renumber them"
        )
    missing = [picture for picture in pictures if picture.number not in scores]
    if missing:
        raise DataError(
            f"{file}: no score for {len(missing)} of {len(pictures)} pictures, such as {missing[0].path.name!r}; "
            "run 2D_spatial_eval.py over all of them"
        )
    return np.array([scores[picture.number] for picture in pictures])


def write_result(folder: Path, metric: str, scores: NDArray[np.float64]) -> None:
    """Write one metric's scores (N,) of a category's pictures, in order of their numbers, and their mean.

    Answers of BLIP-VQA are text with four decimals, others are numbers.
    """
    name, mean_file, words = _WRITTEN[metric]
    answers: list[str | float] = [f"{score:.4f}" if metric == BLIP_VQA else float(score) for score in scores]
    rows = [{"question_id": place, "answer": answer} for place, answer in enumerate(answers)]
    write_atomically(folder / name / _RESULT, json.dumps(rows))
    write_atomically(folder / name / mean_file, f"{words}{float(np.mean(scores))}")
