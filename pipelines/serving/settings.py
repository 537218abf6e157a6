"""What a service is started with."""

import os
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError, ParameterError
from pipelines.serving.access import ANY_ADDRESS, LOOPBACK_NAMES, MIN_TOKEN, is_host_name, is_loopback, token_digest
from pipelines.serving.access_log import require_writable

TOKEN_VARIABLE = "PIPELINES_SERVE_TOKEN"


@dataclass(frozen=True)
class ServeOptions:
    """As the command takes them; `gallery` None is the pipeline's own index."""

    gallery: Path | None = None
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    allowed_host: tuple[str, ...] = ()
    searches_per_minute: int = 300
    access_log: Path | None = None
    log_queries: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ParameterError(f"serve: --port {self.port}: from 1 to 65535, or 0 for any free one")
        if self.searches_per_minute < 1:
            raise ParameterError(f"serve: --searches-per-minute {self.searches_per_minute}: must be at least 1")
        if self.log_queries and self.access_log is None:
            raise ParameterError("serve: --log-queries: give the file too, --access-log FILE")
        for name in self.allowed_host:
            if not is_host_name(name):
                raise ParameterError(
                    f"serve: --allowed-host {name}: must be a name or an address; leave out the port, http:// and brackets"
                )


@dataclass(frozen=True)
class ReplicaSettings:
    """What a replica must know. Of the token it gets the digest only."""

    gallery: str
    root: str
    model: str | None
    hosts: tuple[str, ...]
    token: str | None
    searches_per_minute: int
    access_log: str | None = None
    log_queries: bool = False


def replica_settings(options: ServeOptions, gallery: Path, root: Path) -> ReplicaSettings:
    """Check the options against each other.

    Raises ParameterError where others could reach the service without a token, or the access log cannot be written.
    """
    local = is_loopback(options.host)
    hosts = tuple(name.lower() for name in options.allowed_host)
    token = read_token(options.token_file)
    if token is None and not (local and all(map(is_loopback, hosts))):
        by = f"--host {options.host}" if not local else f"--allowed-host {next(h for h in hosts if not is_loopback(h))}"
        raise ParameterError(
            f"serve: with {by} others can search this gallery, so a token is needed: openssl rand -hex 32 > FILE, then "
            f"--token-file FILE, or put it into {TOKEN_VARIABLE}"
        )
    if local or hosts:
        # DNS rebinding needs a name that others can point here. --host is an address, or a name that was given as the allowed
        # ones were. This machine's own name was not given, and whoever runs the network may decide where it leads: for ANY_ADDRESS
        # `serve` prints an allowed name instead.
        own = () if options.host in ANY_ADDRESS else (options.host.lower(),)
        hosts = tuple(dict.fromkeys((*LOOPBACK_NAMES, *own, *hosts)))
    if options.access_log is not None:
        try:
            require_writable(options.access_log)
        except OSError as error:
            raise ParameterError(
                f"serve: --access-log {options.access_log}: cannot be written ({error.strerror})"
            ) from None
    return ReplicaSettings(
        gallery=str(gallery.absolute()),
        root=str(root.absolute()),
        model=options.model,
        hosts=hosts,
        token=token_digest(token) if token else None,
        searches_per_minute=options.searches_per_minute,
        access_log=None if options.access_log is None else str(options.access_log.absolute()),
        log_queries=options.log_queries,
    )


def read_token(file: Path | None) -> str | None:
    """Return the token from a file, or else from the environment; None where there is neither. Raises DataError, ParameterError."""
    if file is not None:
        try:
            token, where = file.read_text(encoding="utf-8").strip(), str(file)
        except UnicodeDecodeError:
            raise DataError(f"{file}: not a text; write the token into it as one line") from None
    elif TOKEN_VARIABLE in os.environ:
        token, where = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ParameterError(
            f"serve: the token in {where} must be one word of at least {MIN_TOKEN} characters; make one: openssl rand -hex 32"
        )
    return token
