"""Removes secrets from text that is printed, logged or stored.

A secret is the password in an address (`postgresql://user:PASSWORD@host`), or the value of an environment variable whose name says
so (`RAY_AUTH_TOKEN`, `AWS_SECRET_ACCESS_KEY`, `MLFLOW_TRACKING_PASSWORD`, ...).
"""

import os
import re

HIDDEN = "***"
MIN_LENGTH = 6
"""Shorter values are not searched for: "1" or "true" would blank out half a log."""
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY", re.IGNORECASE)
_USER_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):([^@/\s]+)@")
_TOKEN_AS_USER = re.compile(r"(?<=http://|https:/)(/?)([^:/@\s]+)@")
_IN_QUERY = re.compile(r"([?&](?:password|passwd|token|secret|api_key|sslpassword)=)[^&\s'\"]+", re.IGNORECASE)
_LOOKS_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bhf_[A-Za-z0-9]{30,}\b"
)


def secret_values() -> list[str]:
    """Return the values of the environment that must not be written anywhere, longest first. A path to a secret is not one."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= MIN_LENGTH and not name.upper().endswith(("_PATH", "_FILE"))
    }
    return sorted(found, key=len, reverse=True)


def without_secrets(text: str) -> str:
    """Return `text` with every secret in it replaced by `***`."""
    for value in secret_values():
        text = text.replace(value, HIDDEN)
    text = _USER_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = _TOKEN_AS_USER.sub(rf"\1{HIDDEN}@", text)
    return _IN_QUERY.sub(rf"\1{HIDDEN}", text)


def contains_secret(text: str) -> bool:
    """Return whether `text` contains a secret of the environment, something like a key, or a password in an address.

    Placeholders (`${PASSWORD}`, `PASSWORD`, `***`) and words of fewer than six letters are not secrets.
    """
    if any(value in text for value in secret_values()) or _LOOKS_SECRET.search(text):
        return True
    passwords = (found[1] for found in _USER_PASSWORD.findall(text))
    return any(len(word) >= MIN_LENGTH and not word.isupper() and not set(word) & set("${}<>*") for word in passwords)
