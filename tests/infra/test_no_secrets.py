"""No file in infra/ holds a secret, a machine's name, or an image that changes under its name."""

import re
from pathlib import Path

import pytest
from infra_files import INFRA

FILES = sorted(
    path for path in INFRA.rglob("*") if path.is_file() and "__pycache__" not in path.parts and path.name != ".env"
)

HEX = "0123456789abcdef" * 2

KNOWN_FORMS = re.compile(
    r"""
    \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                                   # of AWS
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    | \b(?:gh[pousr]|github_pat|glpat|hf|xox[abp])[_-][A-Za-z0-9_-]{16,}
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}                     # a JSON web token
    | \b[0-9a-f]{32,}\b                                             # what `openssl rand -hex` prints
    | ://[^/\s:@$]+:[^/\s:@$]+@                                     # a password in an address
    """,
    re.VERBOSE,
)
# A name that says so with a value written out: after "=", ": " or as a default, "${NAME:-value}".
NAMED = re.compile(
    r"""(?:password|passwd|secret|token|(?:secret_?|access_?)+key(?:_?id)?)["']?(?:=|:\s+|:-)["']?(?=(?P<value>[^\s"'}]{4,}))""",
    re.IGNORECASE,
)
NO_SECRET = re.compile(r"[$~`.{(]|(?:token|true|false|disabled)$")


def _secrets(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        found += [match[0] for match in KNOWN_FORMS.finditer(line)]
        code = re.sub(r"(^|\s)#.*", "", line)
        found += [match[0] + match["value"] for match in NAMED.finditer(code) if not NO_SECRET.match(match["value"])]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(INFRA).as_posix())
def test_no_file_holds_a_secret(path: Path) -> None:
    assert _secrets(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        f"  AWS_ACCESS_KEY_ID: {'AKIA' + HEX[:16].upper()}",
        f"RAY_AUTH_TOKEN={HEX * 2}",
        f"# openssl gave {HEX}",
        "POSTGRES_PASSWORD=mlflow",
        "      POSTGRES_PASSWORD: 'mlflow'",
        "AWS_SECRET_ACCESS_KEY: minioadmin",
        "S3_SECRET_KEY=minioadmin # change me",
        "url: postgresql://mlflow:mlflow@postgres:5432/mlflow",
        "  RAY_AUTH_TOKEN: ${RAY_AUTH_TOKEN:-letmein}",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        f"token: {'hf' + '_'}{'a' * 34}",
    ],
)
def test_a_secret_would_be_found(line: str) -> None:
    assert _secrets(line) != []


@pytest.mark.parametrize(
    "line",
    [
        "RAY_AUTH_TOKEN=",
        "RAY_AUTH_MODE: token",
        "  POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?see .env.example}",
        "  RAY_AUTH_TOKEN: ${RAY_AUTH_TOKEN:-}",
        "automountServiceAccountToken: false",
        "  ~/.ray/auth_token: ~/.ray/auth_token # who has it may run code",
        "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...",
    ],
)
def test_the_name_of_a_secret_is_none(line: str) -> None:
    assert _secrets(line) == []


def test_files_with_secrets_are_ignored_by_git() -> None:
    assert ".env" in (INFRA / "docker" / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(INFRA).as_posix())
def test_no_image_is_the_latest(path: Path) -> None:
    assert not re.search(r"[\w/-]:latest\b", path.read_text(encoding="utf-8"))
