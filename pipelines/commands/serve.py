"""`python -m pipelines serve GALLERY`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command, typed
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("gallery", type=Path, nargs="?", help="a folder made by `gallery` (default: the pipeline's own, data/index)")
    add("--model", help="that made the gallery, where it is not where the gallery says")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1); any other needs a token")
    add("--port", type=int, default=8000, help="(default 8000; 0: any free one)")
    add("--token-file", type=Path, metavar="FILE", help="holds the token (or set PIPELINES_SERVE_TOKEN)")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name by which browsers reach the service, behind a proxy, say",
    )
    add("--searches-per-minute", type=int, default=300, metavar="N", help="of one client (default 300)")
    add("--access-log", type=Path, metavar="FILE", help="append a line of JSON per request, without what was asked")
    add("--log-queries", action="store_true", help="write into that log what was asked, too: sentences, filters, ids")


def run(options: argparse.Namespace) -> None:
    from pipelines.serving.running import serve
    from pipelines.serving.settings import ServeOptions

    options.allowed_host = tuple(options.allowed_host)
    serve(typed(ServeOptions, options), Workspace.at(options.workspace))


COMMAND = Command(
    "serve",
    "search people in a browser, and by HTTP",
    run,
    add_options,
    interrupt_on_sigterm=True,
    example="serve people --port 8080",
    anywhere=True,
)
