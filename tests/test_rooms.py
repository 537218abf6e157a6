"""Imports run one way: from the top of `rooms.ROWS` to its bottom, and never in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest
import rooms

ROW = {room: number for number, row in enumerate(rooms.ROWS) for room in row}
HALVES = {"components", "pipelines"}


def test_every_module_is_in_a_room_and_every_room_is_there():
    modules = rooms.modules()
    assert {module for module in modules if rooms.room_of(module) is None} == HALVES
    assert set(rooms.ROOMS) <= set(modules)


def test_at_most_eight_files_stay_flat_in_pipelines():
    assert len(list((rooms.ROOT / "pipelines").glob("*.py"))) <= 8


@pytest.mark.parametrize("room", rooms.ROOMS)
def test_a_room_imports_only_rooms_below_it(room):
    up = {other for other in rooms.arrows()[room] if ROW[other] <= ROW[room]}
    found = [
        f"{module} imports {imported}"
        for module, all_imported in rooms.imports().items()
        for imported in all_imported
        if rooms.room_of(module) == room and rooms.room_of(imported) in up
    ]
    assert not found, "\n".join(found)


def test_no_file_imports_itself_through_others():
    try:
        TopologicalSorter(rooms.imports()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_lazy_imports_and_imports_for_type_checkers_are_read(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import pipelines.a\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipelines.b import C\n"
        "def f():\n    from pipelines import d\n"
    )
    known = dict.fromkeys(("pipelines", "pipelines.a", "pipelines.b", "pipelines.d"), file)
    assert set(rooms._imported(file, known)) == {"pipelines.a", "pipelines.b", "pipelines.d"}


@pytest.mark.parametrize("package", sorted(m for m, f in rooms.modules().items() if f.name == "__init__.py"))
def test_a_package_says_what_belongs_in_it(package):
    assert ast.get_docstring(ast.parse(rooms.modules()[package].read_bytes()))


def test_the_page_on_architecture_shows_these_rooms():
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert rooms.BEGIN in page
    assert page == rooms.written(page), "run `make rooms`"
