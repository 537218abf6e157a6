"""A folder that two machines see: one works, the other waits, and a dead one is taken over, whatever the clocks say."""

import json
import os
import threading
import time

import pytest

from pipelines.errors import InfrastructureError
from pipelines.locks import lease as subject
from pipelines.locks.lease import Lease, read_lease

BEAT, STALE = 0.05, 1.2


@pytest.fixture
def lease_of(tmp_path, monkeypatch):
    """Makes the lease of a machine on one folder."""
    made = []

    def make(machine):
        monkeypatch.setattr(subject, "machine_id", lambda: machine)
        made.append(Lease(tmp_path / "lease.json", beat=BEAT, stale=STALE))
        return made[-1]

    yield make
    for lease in made:
        lease.release()


def stop_renewing(lease):
    """As a machine that lost power, or was suspended: the file stays, and nobody renews it."""
    lease._stop.set()
    lease._thread.join()


def test_a_lease_is_there_while_it_is_held_and_gone_after(lease_of, tmp_path):
    lease = lease_of("a")
    lease.acquire(1)
    assert read_lease(lease.path).pid == os.getpid()
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_a_living_holder_on_another_machine_is_not_taken_over_however_long_it_works(lease_of):
    first, second = lease_of("a"), lease_of("b")
    first.acquire(1)
    started = time.monotonic()
    with pytest.raises(InfrastructureError, match=r"process \d+ on .* still works in .*PIPELINES_LOCK_TIMEOUT"):
        second.acquire(2 * STALE)
    assert time.monotonic() - started >= 2 * STALE
    first.require()


def test_a_holder_that_went_silent_is_taken_over_and_finds_out(lease_of):
    first, second = lease_of("a"), lease_of("b")
    first.acquire(1)
    stop_renewing(first)
    started = time.monotonic()
    second.acquire(10)
    assert time.monotonic() - started >= STALE
    with pytest.raises(InfrastructureError, match="has taken over"):
        first.require()
    first.release()
    second.require()  # and the first does not remove what is no longer its own


def test_a_dead_process_of_this_machine_is_not_waited_for(lease_of):
    first, second = lease_of("a"), lease_of("a")  # flock, which the second holds by now, says that the first is dead
    first.acquire(1)
    stop_renewing(first)
    started = time.monotonic()
    second.acquire(10)
    assert time.monotonic() - started < STALE / 2


UNREADABLE = {"empty": "", "torn": '{"token": "1', "of other code": '{"token": "1", "of_later_code": 1}'}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_lease_that_cannot_be_read_is_taken_over_when_it_has_not_changed(lease_of, capsys, content):
    lease = lease_of("a")
    lease.path.write_text(content)
    started = time.monotonic()
    lease.acquire(10)
    assert STALE <= time.monotonic() - started < 5
    lease.require()
    assert read_lease(lease.path).token == lease.token
    assert capsys.readouterr().err == (
        f"waiting: another process, whose lease cannot be read, holds {lease.path.parent}\n"
    )


def test_a_lease_that_cannot_be_read_is_waited_for_while_it_changes(lease_of):
    lease, ended = lease_of("a"), threading.Event()
    lease.path.touch()

    def renew():
        while not ended.wait(BEAT):
            os.utime(lease.path)

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(InfrastructureError, match="whose lease cannot be read, still works in"):
            lease.acquire(2 * STALE)
    finally:
        ended.set()
        renewing.join()
    assert lease.path.read_text() == ""


def test_a_living_holder_writes_a_torn_lease_anew(lease_of):
    lease = lease_of("a")
    lease.acquire(1)
    lease.path.write_text("")
    time.sleep(6 * BEAT)
    assert read_lease(lease.path).token == lease.token


def test_a_new_lease_is_on_the_disk_before_it_has_its_name(lease_of, monkeypatch):
    calls = []
    for name in ("fsync", "link"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, call=original: (calls.append(name), call(*given))[1])
    lease = lease_of("a")
    assert lease._create()
    assert calls == ["fsync", "link"]
    assert read_lease(lease.path).token == lease.token


@pytest.mark.parametrize("skew", [-86400, 86400])
def test_a_clock_that_is_a_day_off_changes_nothing(lease_of, monkeypatch, skew):
    first, second = lease_of("a"), lease_of("b")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + skew)
    first.acquire(1)
    os.utime(first.path, (now() + skew, now() + skew))
    monkeypatch.undo()
    with pytest.raises(InfrastructureError):
        second.acquire(2 * STALE)


def test_of_two_that_wait_for_a_dead_holder_only_one_gets_the_lease(lease_of):
    dead, *waiting = (lease_of(name) for name in "abc")
    dead.acquire(1)
    stop_renewing(dead)
    got = []

    def wait(lease):
        try:
            lease.acquire(3 * STALE)
            got.append(lease)
        except InfrastructureError:
            pass

    threads = [threading.Thread(target=wait, args=[lease]) for lease in waiting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].require()


def test_a_folder_that_is_away_for_a_while_comes_back_as_it_was(lease_of, tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    lease = lease_of("a")
    lease.path = folder / "lease.json"
    lease.acquire(1)
    folder.rename(tmp_path / "away")
    time.sleep(4 * BEAT)
    assert not folder.exists()  # not made again, empty
    (tmp_path / "away").rename(folder)
    before = json.loads(lease.path.read_text())["beat"]
    time.sleep(4 * BEAT)
    assert json.loads(lease.path.read_text())["beat"] > before
    lease.require()
