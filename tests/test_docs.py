"""What the pages name is there: files, folders, and functions written as `file.py:name`."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = ("benchmarks/", "components/", "docs/", "infra/", "pipelines/", "presets/", "studies/", "tests/")


def quoted(page: Path) -> list[str]:
    """Everything between single backquotes, and the targets of links."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]


def defined(file: Path) -> set[str]:
    """Top-level names of a file, and `Class.method`."""
    names = set()
    for node in ast.parse(file.read_bytes()).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_functions_that_a_page_names_exist(page):
    missing = []
    for name in quoted(page):
        path, _, inside = name.partition(":")
        if not re.fullmatch(r"[\w./-]+", path) or not path.startswith(PLACES) or "<" in path:
            continue
        file = ROOT / path
        if not file.exists() or (path.endswith(".py") and inside and inside not in defined(file)):
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link and not link.startswith("#")]
    assert not [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
