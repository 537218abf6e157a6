"""Published datasets in their exact layouts, of a few pictures."""

import json
from pathlib import Path

from PIL import Image


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 16), (seed % 256, seed // 256, 7)).save(path, "PNG")


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def cuhk(root: Path, paths: list[str]) -> None:
    """As caption_all.json: no split, no tokens. The identities stand at both ends of each published range."""
    ids = (1, 11003, 11004, 12003, 12004, 13003)
    entries = [{"id": i, "file_path": p, "captions": [f"A {i}.", f"B {i}."]} for i, p in zip(ids, paths, strict=False)]
    write_json(root / "CUHK-PEDES/caption_all.json", entries)


def icfg(root: Path, paths: list[str]) -> None:
    entries = [
        {
            "split": ("train", "test")[i % 2],
            "captions": [f"Person {i}."],
            "file_path": p,
            "processed_tokens": [["person"]],
            "id": i,
        }
        for i, p in enumerate(paths)
    ]
    write_json(root / "ICFG-PEDES/ICFG_PEDES.json", entries)


def rstp(root: Path, paths: list[str]) -> None:
    entries = [
        {"id": i, "img_path": p, "captions": [f"A {i}.", f"B {i}."], "split": ("train", "val", "test")[i % 3]}
        for i, p in enumerate(paths)
    ]
    write_json(root / "RSTPReid/data_captions.json", entries)


def synth(root: Path, paths: list[str], name: str = "synthpedes-dataset.json") -> None:
    entries = [
        {
            "id": 7 + i,
            "file_path": p,
            "attributes": ["man,black hair,black shirt,pink shorts,black shoes,unknown"],
            "captions": [f"A {i}.", f"B {i}."] + [f"C {i}."] * (i % 2),
            "prompt_caption": ["A man with black hair."],
        }
        for i, p in enumerate(paths)
    ]
    write_json(root / "SYNTH-PEDES" / name, entries)


def mals(root: Path, paths: list[str]) -> None:
    for part in (0, 1):
        entries = [
            {"image": p, "caption": f"a person {p}", "image_id": f"c_g_a_{part}_{p}", "label": [0, 1, -1] * 9}
            for p in paths[part::2]
        ]
        write_json(root / f"MALS/gene_attrs/g_c_g_a_{part}_attrs.json", entries)


def luperson(root: Path, paths: list[str]) -> None:
    """Two captions of every picture, four of every second."""
    for name in ("Ts-qwen", "Td-qwen", "Ts-shikra", "Td-shikra"):
        chosen = paths if name.endswith("qwen") else paths[1::2]
        write_json(root / f"LUPerson-MLLM/captions/{name}.json", {f"part1/{p}": f" {name} of {p}. " for p in chosen})


def webperson(root: Path, paths: list[str]) -> None:
    entries = [{p: {"caption1": f"One\nof {p}./n", "caption2": f"/nIn yellow/navy, {p}."}} for p in paths]
    write_json(root / "WebPerson-1M/100w.json", entries)


SETS = {
    "cuhk-pedes": (cuhk, "CUHK-PEDES", "imgs/", "CUHK01/{}.png"),
    "icfg-pedes": (icfg, "ICFG-PEDES", "imgs/", "test/0627/{}.png"),
    "rstpreid": (rstp, "RSTPReid", "imgs/", "{}.png"),
    "synth-pedes": (synth, "SYNTH-PEDES", "", "Part1/7/{}.png"),
    "mals": (mals, "MALS", "", "gene_crop/c_g_a_0/{}.png"),
    "luperson-mllm": (luperson, "LUPerson-MLLM", "images/", "{}.png"),
    "webperson-1m": (webperson, "WebPerson-1M", "images/", "a/{}.png"),
}


def lay_out(root: Path, name: str, count: int = 4) -> list[str]:
    """A dataset of `count` pictures below `root`; returns their paths as `Record.image_path` lists them."""
    write, folder, prefix, pattern = SETS[name]
    paths = [pattern.format(i) for i in range(count)]
    for i, path in enumerate(paths):
        picture(root / folder / prefix / path, i)
    write(root, paths)
    return [prefix + path for path in paths]
