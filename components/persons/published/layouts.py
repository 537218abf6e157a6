"""The published datasets: where their files lie, who reads them, how big they are, and how to get them.

Counts are those of the papers and of the loaders that published results were made with. What nobody states is None.
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
    """A form that a dataset is distributed in: its annotation files (a pattern below the dataset's folder), and their reader."""

    files: str
    read: Reader

    def folder_of(self, file: Path) -> Path:
        """The dataset's folder, of one of its annotation files."""
        return file.parents[self.files.count("/")]

    def find(self, folder: Path) -> list[Path]:
        """The annotation files in a dataset's folder, sorted; empty when it is not in this form."""
        return sorted(path for path in folder.glob(self.files) if path.is_file())


@dataclass(frozen=True)
class Counts:
    """How much there is of a split; None where it is not known."""

    images: int | None
    captions: int | None
    identities: int | None


@dataclass(frozen=True)
class Layout:
    """How one published dataset is laid out.

    Attributes:
        name: in params.yaml and in `Record.source`.
        folders: what its folder may be called; the first is the published name.
        formats: the first that has files there is read.
        contents: what belongs into its folder, for people.
        how_to_get: for people, in a clause; {folder} is where it goes.
        published: split -> counts.
    """

    name: str
    folders: tuple[str, ...]
    formats: tuple[Format, ...]
    contents: str
    how_to_get: str
    published: Mapping[str, Counts]

    def instructions(self, root: Path) -> str:
        """What to do when it is not in `root`, without a full stop."""
        folder = root / self.folders[0]
        return f"{self.how_to_get.format(folder=folder)}; {folder} is to hold {self.contents}"

    def find(self, root: Path) -> tuple[Path, Format] | None:
        """Its folder below `root`, or `root` itself, and the form it is in there; None when it is not there."""
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
        formats=(
            Format("ICFG-PEDES.json", annotations.people),
            Format("ICFG_PEDES.json", annotations.people),
        ),
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
