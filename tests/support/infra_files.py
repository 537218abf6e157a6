"""What the tests of infra/ share: where its files are, what the lock says, what a pinned image is."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
INFRA = ROOT / "infra"
SCHEMAS = ROOT / "tests" / "infra" / "schemas"

_IMAGE = re.compile(r"(?P<name>[a-z0-9][a-z0-9._/-]*(:\d+/[a-z0-9._/-]+)?):(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]*)")


def documents(path: str) -> list[Any]:
    """The YAML documents of a file below infra/."""
    return list(yaml.safe_load_all((INFRA / path).read_text(encoding="utf-8")))


@cache
def locked(package: str, lock: Path = ROOT / "requirements.lock") -> str:
    """The version of `package` in a lock file."""
    (version,) = re.findall(rf"^{re.escape(package)}==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return str(version)


def is_pinned(image: str) -> bool:
    """Whether an image is named with a tag that stays what it is: a version or a commit."""
    match = _IMAGE.fullmatch(image)
    return bool(match) and match["tag"] not in {"latest", "main", "master", "nightly", "stable", "edge"}  # type: ignore[index]


@cache
def ray_start_options() -> frozenset[str]:
    """The options of the installed `ray start`, as typed."""
    from ray.scripts.scripts import start

    return frozenset(option for parameter in start.params for option in parameter.opts)


def options_in(command: str) -> set[str]:
    """The long options in a command line."""
    return set(re.findall(r"(?<!\S)(--[a-z][a-z-]*)", command))
