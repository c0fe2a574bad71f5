"""Removal of secrets from text that is printed, written into results or published, by one list of patterns."""

from __future__ import annotations

import os
import re
from typing import Any


REMOVED = "[secret removed]"
# Formats that are secrets wherever they occur. A name such as hf_mmbalance is too short to be a token.
_FORMATS = {
    "access token of the Hub": r"\b(?:(?:hf|api_org)_[A-Za-z0-9]{20,}|hf_(?:oauth|jwt)_[A-Za-z0-9_.-]{20,})",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,})",
    "GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "AWS secret key": r"(?i:(?<=aws_secret_access_key=)|(?<=aws_secret_access_key = ))[A-Za-z0-9/+]{40}",
    "Google key": r"\bAIza[A-Za-z0-9_-]{35}",
    "Slack token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "API key": r"\bsk-(?=[\w-]*\d)[A-Za-z0-9_-]{32,}",
    "JSON web token": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[A-Za-z0-9+/=\s]*-----END [A-Z ]*PRIVATE KEY-----)?",
    "bearer token": r"(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}",
    "password in an address": r"(?<=://)[^/\s@:\"']*:[^/\s@\"']+(?=@)",
}
_ANY = re.compile("|".join(f"(?:{pattern})" for pattern in _FORMATS.values()))
# Names whose value is a secret: options, keys of a mapping, and environment variables.
_NAMED = re.compile(r"(?:token|password|passwd|secret|api_?key|access_?key)$", re.IGNORECASE)
_OPTION = re.compile(r"(--[\w-]*(?:token|password|passwd|secret|api[_-]?key|access[_-]?key)[= ])('[^']*'|\S+)")
SHORTEST = 8  # characters; a shorter value of an environment variable would match parts of ordinary words


def scrub(text: str) -> str:
    """Return the text without tokens, keys, passwords, and the values of environment variables named like one."""
    for value in _of_environment():
        text = text.replace(value, REMOVED)
    return _OPTION.sub(rf"\1{REMOVED}", _ANY.sub(REMOVED, text))


def scrub_all(value: Any) -> Any:
    """Return a JSON-like value with every text scrubbed; a text whose key is named like a secret is removed entirely.

    Placeholders such as `<HUB_TOKEN>`, which transformers writes instead of a token, are kept.
    """
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {key: REMOVED if _is_secret_entry(key, entry) else scrub_all(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [scrub_all(entry) for entry in value]
    return value


def _is_secret_entry(key: Any, value: Any) -> bool:
    named = isinstance(key, str) and _NAMED.search(key) is not None
    return named and isinstance(value, str) and value != "" and not re.fullmatch(r"<\w+>", value)


def find_secret(text: str) -> tuple[int, str] | None:
    """Return the index and the kind of the first secret in the text; None if there is none."""
    for value in _of_environment():
        if value in text:
            return text.index(value), "value of a secret environment variable"
    found = _ANY.search(text)
    if found is None:
        return None
    place = found.start()
    return place, next(kind for kind, pattern in _FORMATS.items() if re.compile(pattern).match(text, place))


def _of_environment() -> list[str]:
    values = {value.strip() for name, value in os.environ.items() if _NAMED.search(name)}
    # Longest first: if one value contains another, no part of it may be left.
    return sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)
