"""Secrets stay in the environment: what is printed, logged or stored goes through here first.

A secret is the password in an address (`postgresql://user:PASSWORD@host`), or the value of an environment variable whose name says
so (`RAY_AUTH_TOKEN`, `AWS_SECRET_ACCESS_KEY`, `MLFLOW_TRACKING_PASSWORD`, ...).
"""

import os
import re

HIDDEN = "***"
SHORTEST = 6
"""Values of fewer characters are not looked for: "1" or "true" would blank out half a log."""
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY", re.IGNORECASE)
_USER_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):([^@/\s]+)@")
_TOKEN_AS_USER = re.compile(r"(?<=http://|https:/)(/?)([^:/@\s]+)@")
_IN_QUERY = re.compile(r"([?&](?:password|passwd|token|secret|api_key|sslpassword)=)[^&\s'\"]+", re.IGNORECASE)
_LOOKS_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bhf_[A-Za-z0-9]{30,}\b"
)


def secret_values() -> list[str]:
    """Values of the environment that must not be written anywhere, longest first. A path to a secret is none."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= SHORTEST and not name.upper().endswith(("_PATH", "_FILE"))
    }
    return sorted(found, key=len, reverse=True)


def without_secrets(text: str) -> str:
    """`text` with every secret in it replaced by `***`."""
    for value in secret_values():
        text = text.replace(value, HIDDEN)
    text = _USER_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = _TOKEN_AS_USER.sub(rf"\1{HIDDEN}@", text)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", text)


def holds_a_secret(text: str) -> bool:
    """Whether `text` holds one of the environment's secrets, what looks like a key, or a password in an address.

    Placeholders (`${PASSWORD}`, `PASSWORD`, `***`) and words of fewer than six letters are none.
    """
    if any(value in text for value in secret_values()) or _LOOKS_SECRET.search(text):
        return True
    passwords = (found[1] for found in _USER_PASSWORD.findall(text))
    return any(len(word) >= SHORTEST and not word.isupper() and not set(word) & set("${}<>*") for word in passwords)
