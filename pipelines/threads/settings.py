"""The environment that libraries read on import: how many threads they start, and how those wait."""

import os
import sys

OPENMP_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables with which a user chooses how OpenMP's threads wait; one that is set replaces all of ours."""


def thread_settings(threads: int) -> dict[str, str]:
    """Return environment variables that libraries read on import: sizes of thread pools, how their threads wait, progress bars.

    Results depend on the number of threads, so it replaces what the environment says.
    """
    quiet = {} if sys.stderr.isatty() else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **waiting_settings(), **quiet}


def waiting_settings() -> dict[str, str]:
    """Return environment variables with which a thread that waits for others soon sleeps; those of the user where they are set.

    By default OpenMP's threads spin for milliseconds at each barrier, and OpenBLAS's after each product. On a core that another
    process needs too, a thread that spins delays the one that it waits for. No result depends on these settings. torch loads GNU's
    OpenMP on Linux, for which the number of spins counts: some microseconds, in which most threads arrive. Others (LLVM's, Intel's)
    read the policy.
    """
    chosen = {name: os.environ[name] for name in OPENMP_WAITING if name in os.environ}
    openmp = chosen or {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    return {
        **openmp,
        "OPENBLAS_THREAD_TIMEOUT": os.environ.get("OPENBLAS_THREAD_TIMEOUT", "10"),
    }  # 2^10 cycles, not 2^26
