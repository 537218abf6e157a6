"""A large input is read once, by whatever process; a changed one is read again."""

import os
import sqlite3
from pathlib import Path

import pytest

from components.files import file_digest
from pipelines.identity import known_digests as subject
from pipelines.identity.fingerprint import tree_digests
from pipelines.identity.known_digests import KnownDigests


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files that are as if written long ago."""
    monkeypatch.setattr(subject, "SETTLED_SECONDS", -1.0)
    (tmp_path / "home? 100%").mkdir()
    (tmp_path / "set" / "deep").mkdir(parents=True)
    for number in range(1100):  # more than SQLite takes in one statement
        (tmp_path / "set" / "deep" / f"{number}.jpg").write_bytes(str(number).encode())
    return tmp_path


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are read."""
    names = []

    def read(path):
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(subject, "file_digest", read)
    return names


def test_files_are_read_once_and_changed_ones_again(folder, reads):
    home, files = folder / "home? 100%", folder / "set"
    expected = tree_digests(files)
    assert tree_digests(files, KnownDigests(home)) == expected
    assert len(reads) == 1100
    assert tree_digests(files, KnownDigests(home)) == expected  # as another process would
    assert len(reads) == 1100
    changed = files / "deep" / "7.jpg"
    before = changed.stat()
    changed.write_bytes(b"8")  # of the same size, with the same time
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    (files / "new.jpg").write_bytes(b"new")
    assert tree_digests(files, KnownDigests(home)) == tree_digests(files) != expected
    assert sorted(reads[1100:]) == ["7.jpg", "new.jpg"]


def test_a_name_that_is_not_utf8_is_known_too(folder, reads):
    file = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    file.write_bytes(b"a picture")
    for _ in range(2):
        assert KnownDigests(folder / "home? 100%").of([file]) == [file_digest(file)]
    assert len(reads) == 1


def test_a_file_that_was_written_a_moment_ago_is_read_each_time(folder, reads, monkeypatch):
    monkeypatch.setattr(subject, "SETTLED_SECONDS", 60.0)
    known = KnownDigests(folder / "home? 100%")
    for _ in range(2):
        known.of([folder / "set/deep/1.jpg"])
    assert reads == ["1.jpg", "1.jpg"]


def test_where_the_database_cannot_be_used_files_are_read(folder, reads):
    home = folder / "home? 100%"
    (home / subject.FILE).write_text("no database")
    assert tree_digests(folder / "set", KnownDigests(home)) == tree_digests(folder / "set")
    (home / subject.FILE).unlink()
    KnownDigests(home).of([folder / "set/deep/1.jpg"])
    with sqlite3.connect(home / subject.FILE) as held:
        held.execute("BEGIN EXCLUSIVE")
        reads.clear()
        assert KnownDigests(home).of([folder / "set/deep/1.jpg"]) == [file_digest(folder / "set/deep/1.jpg")]
        assert reads == ["1.jpg"]
