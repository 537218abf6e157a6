"""Waits until the Ray cluster at RAY_ADDRESS has as many living nodes as asked: `python wait_for_nodes.py NODES SECONDS`.

Exit code 75 (try again) and one line when they do not come.
"""

import sys
import time

TRY_AGAIN = 75


def main(wanted: int, seconds: float) -> int:
    import ray

    deadline = time.monotonic() + seconds
    ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
            if time.monotonic() >= deadline:
                print(
                    f"error: {alive} of {wanted} nodes are in the Ray cluster: see above what the others say",
                    file=sys.stderr,
                )
                return TRY_AGAIN
            time.sleep(1)
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
