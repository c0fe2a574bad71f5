"""What became of a case, and what counts as a clear refusal."""

from __future__ import annotations

from collections.abc import Iterator

from hf_mmbalance.console import UserError
from hf_mmbalance.data.clips import DataError
from hf_mmbalance.decision.table import TableError
from hf_mmbalance.model.media_mmbalance import MediaError


REFUSALS = (MediaError, DataError, TableError, ValueError, UserError)
# Subclasses of ValueError that are raised from inside a library and name nothing.
UNCLEAR = (UnicodeError,)


STORED_CLIP = "clip 'clip-x'"  # how a refusal names a row


class WrongAnswer(AssertionError):
    """An answer that no caller should have been given."""


def need(condition: object, what: str) -> None:
    """Raises `WrongAnswer` if the condition does not hold."""
    if not condition:
        raise WrongAnswer(what)


def outcome_of(case: Iterator[str], described: str, where: str) -> tuple[str, str]:
    """Run a case: `answered`, `refused` (clearly, naming the input) or `failed`, with the description.

    Args:
        case: what is left to do of a case that has yielded its description.
        described: that description.
        where: folder of the case's files; a clear refusal names a file in it, the bytes or the row it was given.
    """
    try:
        next(case, None)
    except WrongAnswer as error:
        return "failed", f"{described}: wrong answer: {error}"
    except REFUSALS as error:
        message = str(error)
        if isinstance(error, UNCLEAR) or not any(name in message for name in (where, "<bytes>", STORED_CLIP)):
            return "failed", f"{described}: unclear {type(error).__name__}: {message[:300]}"
        return "refused", f"{described}: {message}"
    except MemoryError as error:
        return "failed", f"{described}: MemoryError {error}"
    except Exception as error:
        return "failed", f"{described}: {type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
    return "answered", described
