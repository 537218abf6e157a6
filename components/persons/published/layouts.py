"""The published datasets: their folders and annotation files, the reader of each, published counts, and how to get them.

Counts are from the papers and from the loaders behind published results. A count that is stated nowhere is None.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.persons.published import annotations
from components.persons.records import Record

Reader = Callable[[Sequence[Path], Path, str], Iterator[Record]]


@dataclass(frozen=True)
class Format:
    """One form in which a dataset is distributed: a pattern of its annotation files below its folder, and their reader."""

    files: str
    read: Reader

    def folder_of(self, file: Path) -> Path:
        """Return the dataset's folder, given one of its annotation files."""
        return file.parents[self.files.count("/")]

    def find(self, folder: Path) -> list[Path]:
        """Return the annotation files in a dataset's folder, sorted; none where it has another form.

        Without hidden ones: archives made on a Mac have a "._name" beside each file.
        """
        return sorted(path for path in folder.glob(self.files) if path.is_file() and not path.name.startswith("."))


@dataclass(frozen=True)
class Counts:
    """Sizes of a split; None where unknown."""

    images: int | None
    captions: int | None
    identities: int | None


@dataclass(frozen=True)
class Layout:
    """The layout of one published dataset.

    Attributes:
        name: as in params.yaml and in `Record.source`.
        folders: names its folder may have; the first is the published one.
        formats: the first with files in the folder is read.
        contents: what its folder must hold, for messages.
        how_to_get: a clause for messages; {folder} is replaced by the target folder.
        published: split -> counts.
    """

    name: str
    folders: tuple[str, ...]
    formats: tuple[Format, ...]
    contents: str
    how_to_get: str
    published: Mapping[str, Counts]

    def instructions(self, root: Path) -> str:
        """Return what to do where the dataset is missing in `root`, without a full stop."""
        folder = root / self.folders[0]
        return f"{self.how_to_get.format(folder=folder)}; {folder} is to hold {self.contents}"

    def find(self, root: Path) -> tuple[Path, Format] | None:
        """Find its folder below `root`, or `root` itself, and the form there; None where it is missing."""
        for folder in (*(root / name for name in self.folders), root):
            for form in self.formats:
                if form.find(folder):
                    return folder, form
        return None


def _webperson(size: str, images: int) -> Layout:
    folder, name = f"WebPerson-{size}", f"Kaichengalex/WebPerson-{size}"
    return Layout(
        name=folder.lower(),
        folders=(folder,),
        formats=(
            Format("data/train-*.parquet", annotations.webperson_shards),
            Format("*00w.json", annotations.webperson_lists),
            Format("webperson*.json", annotations.webperson_lists),
        ),
        contents="data/train-*.parquet (as on the hub), or 100w.json (of the form that GA-DMS reads) and images/",
        how_to_get=f"`hf download --repo-type dataset {name} --local-dir {{folder}}`",
        published={"train": Counts(images, 2 * images, None)},
    )


_ALL = (
    Layout(
        name="cuhk-pedes",
        folders=("CUHK-PEDES",),
        formats=(
            Format("reid_raw.json", annotations.people),
            Format("caption_all.json", annotations.cuhk_without_splits),
        ),
        contents="reid_raw.json or caption_all.json, and imgs/ with cam_a, cam_b, CUHK01, CUHK03, Market, train_query, test_query",
        how_to_get="ask the authors of CUHK-PEDES for it, from a university address "
        "(https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description)",
        published={
            "train": Counts(34054, 68126, 11003),
            "val": Counts(3078, 6158, 1000),
            "test": Counts(3074, 6156, 1000),
        },
    ),
    Layout(
        name="icfg-pedes",
        folders=("ICFG-PEDES", "ICFG_PEDES"),
        formats=(Format("ICFG-PEDES.json", annotations.people), Format("ICFG_PEDES.json", annotations.people)),
        contents="ICFG-PEDES.json (or ICFG_PEDES.json), and imgs/ with train and test",
        how_to_get="ask the authors of ICFG-PEDES for it (https://github.com/zifyloo/SSAN)",
        published={"train": Counts(34674, 34674, 3102), "test": Counts(19848, 19848, 1000)},
    ),
    Layout(
        name="rstpreid",
        folders=("RSTPReid",),
        formats=(Format("data_captions.json", partial(annotations.people, path_key="img_path")),),
        contents="data_captions.json and imgs/",
        how_to_get="download it, or ask the authors of RSTPReid for it "
        "(https://github.com/NjtechCVLab/RSTPReid-Dataset)",
        published={
            "train": Counts(18505, 37010, 3701),
            "val": Counts(1000, 2000, 200),
            "test": Counts(1000, 2000, 200),
        },
    ),
    _webperson("1M", 1_000_000),
    _webperson("5M", 5_002_723),
    Layout(
        name="luperson-mllm",
        folders=("LUPerson-MLLM",),
        formats=tuple(
            Format(f"{prefix}T?-*.json", annotations.luperson_mllm) for prefix in ("captions/", "caption/", "")
        ),
        contents=f"captions/ with {', '.join(annotations.LUPERSON_CAPTIONS)}, and the pictures, flat, in images/",
        how_to_get="captions from `hf download --repo-type dataset TwT-6/LUPerson-MLLM-captions --local-dir "
        "{folder}/captions`, pictures from https://github.com/DengpanFu/LUPerson",
        published={"train": Counts(1_020_022, None, None)},
    ),
    Layout(
        name="synth-pedes",
        folders=("SYNTH-PEDES",),
        formats=(
            Format("synthpedes-dataset.json", annotations.synth_pedes),
            Format("synthpedes_dataset.json", annotations.synth_pedes),
        ),
        contents="synthpedes-dataset.json and Part1/ to Part11/",
        how_to_get="download it (https://github.com/Zplusdragon/PLIP)",
        published={"train": Counts(4_791_771, 12_138_157, None)},
    ),
    Layout(
        name="mals",
        folders=("MALS",),
        formats=(Format("gene_attrs/*.json", annotations.mals),),
        contents="gene_attrs/ with g_4x_attrs.json, g_c_g_a_attrs.json, ..., and gene_crop/",
        how_to_get="download it (https://github.com/Shuyu-XJTU/APTM)",
        published={"train": Counts(1_510_330, 1_510_330, None)},
    ),
)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}
