"""Test processes of pytest-xdist, forked from the warm process, which has the libraries loaded.

pytest-xdist runs `python forked_pytest.py ADDRESS -u -c CODE` where it would run `python -u -c CODE`. That has the warm process at
the address fork a process, in which this same module reads the code's program from the standard input that both have.
"""

import atexit
import os
import sys


def main(address: str) -> int:
    """Exit code of a test process that is forked with this one's standard streams, environment and paths."""
    from pipelines.engine.forked import read_line, request

    sys.path.insert(0, "")  # `request` leaves the first out, as the folder of a script
    answer = request(address, "forked_pytest", "test-process", os.environ, [0, 1, 2])
    if answer is None:
        sys.exit("the warm process does not answer")
    _, connection = answer
    with connection:
        ended = read_line(connection)
    return int(ended["code"]) if ended else 1


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(main(sys.argv[1]))
    exec(eval(sys.stdin.readline()))  # as execnet has it
    atexit._run_exitfuncs()
    os._exit(0)
