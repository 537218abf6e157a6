"""The entry point of `dvc repro` as a job: `python -m pipelines.jobs.repro_job STORAGE KEY RAW [TARGET]`, in the frozen checkout.

The checkout is copied into the shared folder, once, and `dvc repro` runs there, so that training workers on any node read a stage's
inputs at the same path as its driver. It is not a repository (`core.no_scm`); all such checkouts share one DVC cache. An attempt
after a lost job continues in the same checkout, with the finished stages in the scratch root.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from pipelines.errors import INTERRUPTED, OTHER, InfrastructureError, report_error
from pipelines.jobs.task import output_folder, write_manifest
from pipelines.scratch.folder import Scratch, put_in_place
from pipelines.scratch.manifest import JobManifest
from pipelines.scratch.storage import Storage, files_below

RETURNED = ("dvc.lock", "metrics")
"""Results that are not in the DVC cache."""


def main(url: str, key: str, raw: str, targets: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        storage = Storage(url)
        if storage.folder is None or not storage.folder.is_dir():
            raise InfrastructureError(f"{url}: this node does not see the shared folder")
        checkout = storage.folder / "checkouts" / key
        with Scratch(storage.folder / "runs" / key).lock():
            make_checkout(Path.cwd(), checkout, storage.folder, raw)
            code = repro(checkout, targets)
            if code:
                return code
            returned = [name for name in RETURNED if (checkout / name).exists()]
            files = {name: file for each in returned for name, file in files_below(checkout / each).items()}
            storage.publish(files, output_folder(key))
            write_manifest(storage, key, JobManifest(targets=targets))
    except BaseException as error:
        return report_error(error)
    return 0


def make_checkout(source: Path, checkout: Path, shared: Path, raw: str) -> None:
    """Make the checkout in a temporary folder, then rename it; nothing to do after an earlier attempt."""
    if checkout.exists():
        return
    copy = checkout.with_name(f".{checkout.name}.{uuid.uuid4().hex[:8]}")
    try:
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        put_in_place(shared / "inputs" / raw / "raw", copy / "data" / "raw")
        config = f"[core]\n    no_scm = true\n[cache]\n    dir = {shared / 'dvc-cache'}\n"
        (copy / ".dvc").mkdir(exist_ok=True)
        (copy / ".dvc" / "config.local").write_text(config)
        os.rename(copy, checkout)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def repro(checkout: Path, targets: list[str]) -> int:
    """Run `dvc repro` and return the exit code of the stage that failed, or 0; DVC's own code only says that one did."""
    command = [sys.executable, "-m", "dvc", "repro", *targets]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    failed = None
    with subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                failed = re.search(r"exited with (\d+)", line) or failed
        except KeyboardInterrupt:
            process.terminate()
            return INTERRUPTED
    if not process.returncode:
        return 0
    return int(failed[1]) if failed else OTHER


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
