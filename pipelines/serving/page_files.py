"""The files of the page: a fixed set, read once. No other file can be asked for."""

from pathlib import Path

FOLDER = Path(__file__).parent / "page"
PAGE = "index.html"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".json": "application/json",
}


def read_all() -> dict[str, tuple[bytes, str]]:
    """Return content and media type of each file by its name; files of other kinds are not served."""
    files = sorted(FOLDER.rglob("*")) if FOLDER.is_dir() else []
    return {file.name: (file.read_bytes(), _KINDS[file.suffix]) for file in files if file.suffix in _KINDS}
