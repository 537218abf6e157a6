"""Waits until the Ray cluster at RAY_ADDRESS has as many living nodes as asked: `python wait_for_nodes.py NODES SECONDS`.

Exit code 75 (try again) and one line when they do not come.
"""

import sys
import time

TRY_AGAIN = 75


def main(wanted: int, seconds: float) -> int:
    import ray

    deadline = time.monotonic() + seconds
    alive = 0
    while not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except ConnectionError:  # the head answers before its own node is registered
            if time.monotonic() >= deadline:
                return _too_few(alive, wanted)
            time.sleep(1)
    try:
        while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
            if time.monotonic() >= deadline:
                return _too_few(alive, wanted)
            time.sleep(1)
    finally:
        ray.shutdown()
    return 0


def _too_few(alive: int, wanted: int) -> int:
    print(f"error: {alive} of {wanted} nodes are in the Ray cluster: see above what the others say", file=sys.stderr)
    return TRY_AGAIN


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
