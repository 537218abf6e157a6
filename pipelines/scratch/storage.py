"""The storage that the submitter and every node of a cluster share: a folder, or a prefix in an S3-compatible bucket.

Both are accessed through fsspec. A file appears whole or not at all: in a folder by a rename, in a bucket as uploads are atomic. A
folder of files is published with its manifest last, and what is fetched is checked against it. Credentials and the endpoint of a
bucket come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL), never from a parameter.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from components.errors import DataError
from components.files import file_digest, written_atomically
from pipelines.errors import InfrastructureError, one_line
from pipelines.locks.retrying import retry

STORAGE_MANIFEST = "MANIFEST.json"
TIMEOUT_SECONDS = 60.0
Answer = TypeVar("Answer")


class Storage:
    """Files below `url`, an absolute folder or s3://bucket/prefix, by names relative to it (POSIX).

    Requests to a storage that does not answer are retried for `timeout` seconds; then every method raises InfrastructureError.
    """

    def __init__(self, url: str, timeout: float = TIMEOUT_SECONDS) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "timeout": self.timeout}  # without the client: each process makes its own

    @property
    def folder(self) -> Path | None:
        """The shared folder; None for a bucket."""
        return None if "://" in self.url else Path(self.url)

    @cached_property
    def _files(self) -> Any:
        import fsspec

        try:
            # No cache of listings: other machines write here.
            options = {} if self.folder else {"use_listings_cache": False, "skip_instance_cache": True}
            return fsspec.url_to_fs(self.url, **options)[0]
        except ImportError as error:
            raise InfrastructureError(
                f"{self.url}: s3fs is not installed: `pip install 'crossmodal-pipelines[cluster]'`"
            ) from error

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def arrow(self, name: str) -> tuple[Any, str]:
        """Return a pyarrow file system and the path of `name` in it, for libraries that take one.

        It writes through the client used here: pyarrow's own needs other settings for servers that are not Amazon's, and creates
        empty objects for folders, which some of them refuse.
        """
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self._files)), self._files._strip_protocol(self.path(name))

    def read(self, name: str) -> str | None:
        """Return a file's text, or None without the file."""
        data = self.read_bytes(name)
        return None if data is None else data.decode()

    def read_bytes(self, name: str, start: int = 0) -> bytes | None:
        """Return a file's bytes from `start` on, or None without the file. In a bucket `start` must be less than its size."""
        try:
            return bytes(self._retry(lambda: self._files.cat_file(self.path(name), start=start or None)))
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> Any:
        """Return a file's JSON, or None without the file or when it is not JSON."""
        try:
            return json.loads(self.read(name) or "null")
        except ValueError:
            return None

    def write(self, name: str, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        self._write_whole(name, lambda path: self._files.pipe_file(path, data))

    def put(self, file: Path, name: str) -> None:
        self._write_whole(name, lambda path: self._files.put_file(str(file), path))

    def get(self, name: str, file: Path) -> None:
        """Download a file. Raises FileNotFoundError when it is not there, InfrastructureError at once when this disk is full."""
        file.parent.mkdir(parents=True, exist_ok=True)

        def fetch() -> None:
            try:
                self._files.get_file(self.path(name), str(file))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise InfrastructureError(f"{file}: {error.strerror}: make room, and run again") from error
                raise

        self._retry(fetch)

    def names(self, folder: str) -> list[str]:
        """Return the files at any depth below `folder`, relative to it, sorted."""
        try:
            found = self._retry(lambda: self._files.find(self.path(folder)))
        except FileNotFoundError:
            return []
        # A bucket's files are listed without the protocol.
        root = self._files._strip_protocol(self.path(folder)).rstrip("/") + "/"
        return sorted(path[len(root) :] for path in found if path.startswith(root))

    def delete(self, name: str) -> None:
        """Delete a file or a folder, if it is there."""
        try:
            self._retry(lambda: self._files.rm(self.path(name), recursive=True))
        except FileNotFoundError:
            return

    def publish(self, files: Mapping[str, Path], name: str) -> None:
        """Upload `files` below `name`, then a manifest of their digests; nothing where that manifest is there already."""
        manifest = {path: file_digest(file) for path, file in files.items()}
        if self.read_json(f"{name}/{STORAGE_MANIFEST}") == manifest:
            return
        for path, file in files.items():
            self.put(file, f"{name}/{path}")
        self.write(f"{name}/{STORAGE_MANIFEST}", json.dumps(manifest, indent=1, sort_keys=True) + "\n")

    def fetch(self, name: str, target: Path) -> None:
        """Download what was published as `name` to the folder `target`. Raises DataError when a file differs from the manifest."""
        for path in self._manifest(name):
            if not (target / path).resolve().is_relative_to(target.resolve()):
                raise DataError(f"{self.path(name)}: {path!r} in the manifest leaves the folder")
            with contextlib.suppress(FileNotFoundError):  # `require_whole` reports it
                self.get(f"{name}/{path}", target / path)
        self.require_whole(name, target)

    def require_whole(self, name: str, folder: Path) -> None:
        """Raise DataError unless `folder` holds every file that was published as `name`, unchanged."""
        for path, digest in self._manifest(name).items():
            file = folder / path
            if not file.is_file():
                raise DataError(f"{self.path(name)}: {path} is missing: delete the folder and run again")
            if file_digest(file) != digest:
                raise DataError(f"{self.path(name)}/{path}: differs from its manifest: delete the folder and run again")

    def _manifest(self, name: str) -> dict[str, str]:
        manifest = self.read_json(f"{name}/{STORAGE_MANIFEST}")
        if not isinstance(manifest, dict):
            raise DataError(f"{self.path(name)}: its manifest is missing: delete the folder and run again")
        return manifest

    def _write_whole(self, name: str, write: Callable[[str], Any]) -> None:
        """Write to a temporary file, then rename it to `name`."""
        if self.folder is None:
            self._retry(lambda: write(self.path(name)))
            return
        final = self.folder / name

        def write_and_rename() -> None:
            if not self.folder.is_dir():  # type: ignore[union-attr]  # not mounted: do not write below it
                raise OSError(f"{self.folder} is not there")
            final.parent.mkdir(parents=True, exist_ok=True)
            with written_atomically(final) as temporary:
                write(str(temporary))

        self._retry(write_and_rename)

    def _retry(self, action: Callable[[], Answer]) -> Answer:
        """Return the result of `action`, retried while the storage is away. A missing file raises FileNotFoundError at once."""

        def is_missing_file(error: Exception) -> bool:
            return isinstance(error, FileNotFoundError) and (self.folder is None or self.folder.is_dir())

        def away(error: Exception) -> bool:
            known = is_missing_file(error) or isinstance(error, PermissionError | InfrastructureError)
            return not known and self._may_recover(error)

        try:
            return retry(action, timeout=self.timeout, away=away, pause=min(2.0, self.timeout / 10))
        except Exception as error:  # clients fail in many types (OSError, botocore's own): all mean that it is away
            if is_missing_file(error) or isinstance(error, InfrastructureError):
                raise
            raise InfrastructureError(
                f"the storage {self.url} cannot be used ({one_line(error, 160)}): check compute.storage, and for a bucket "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
            ) from error

    @staticmethod
    def _may_recover(error: Exception) -> bool:
        return type(error).__name__ not in ("NoCredentialsError", "TypeError", "AttributeError")


def files_below(path: Path) -> dict[str, Path]:
    """Return every file at or below `path`, by a name that begins with that of `path` itself."""
    if path.is_file():
        return {path.name: path}
    found = (Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
    return {f"{path.name}/{file.relative_to(path).as_posix()}": file for file in sorted(found) if file.is_file()}
