"""A disk that is full, and a folder that is away for a while, under a stage in mid-training."""

import os
import time

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_is_one_line_and_with_room_the_stage_goes_on(with_people, long, calm, same_results, small_disk):
    with_people.edit(long)
    (folder,) = calm.scratch("probe")
    (checkpoint, *_) = (folder / "checkpoints" / "main").iterdir()
    room = 2.5 * size_of(checkpoint) / 2**20  # for the first two checkpoints, and half of the third
    home = small_disk(f"{room:.0f}")
    place = with_people
    os.symlink(home, place.home)
    finished = place.run("probe")
    assert finished.returncode == 75, finished.stderr
    assert "Traceback" not in finished.stderr
    (line,) = [text for text in finished.stderr.splitlines() if text.startswith("error: ")]
    assert "No space left on device: the checkpoint after step 15 cannot be written to" in line
    assert "make room, and run again to resume" in line
    assert place.steps("probe") == [5, 10]
    assert not (place.root / "models/probe").exists()
    (run,) = place.tracked("probe")
    assert run.info.status == "FAILED"
    small_disk(200)
    finished = place.run("probe")
    assert finished.returncode == 0, finished.stderr
    assert "resuming from step 10" in finished.stdout
    same_results(place)


def test_a_scratch_folder_that_is_away_for_a_while_is_waited_for(started, same_results, tmp_path):
    place, process = started()
    place.home.rename(tmp_path / "away")
    time.sleep(5)
    assert process.poll() is None
    assert not place.home.exists()
    (tmp_path / "away").rename(place.home)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "is away; waiting for it" in out
    same_results(place)
