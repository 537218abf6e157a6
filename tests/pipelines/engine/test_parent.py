"""A process ends with the one that started it."""

import multiprocessing
import os
import subprocess
import sys
import time

from pipelines.engine.parent import end_with_parent
from pipelines.errors import TRY_AGAIN

CHILD = """
import time
from pipelines.engine.parent import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_process_ends_when_its_standard_input_closes():
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(100) == TRY_AGAIN


def _waits_for_its_parent(line):
    def end():
        line.send("parent ended")
        os._exit(0)

    end_with_parent(end)
    time.sleep(60)


def _ends_at_once(line):
    multiprocessing.get_context("fork").Process(target=_waits_for_its_parent, args=(line,)).start()
    multiprocessing.process._children.clear()  # else it would wait for its child


def test_a_process_of_multiprocessing_notices_the_end_of_its_parent():
    spawn = multiprocessing.get_context("spawn")
    mine, its = spawn.Pipe()
    process = spawn.Process(target=_ends_at_once, args=(its,))
    process.start()
    process.join(30)
    assert mine.poll(30)
    assert mine.recv() == "parent ended"
