"""Add a remedy to the error messages of the Hub's clients, and remove secrets from them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hf_mmbalance.console import UserError
from hf_mmbalance.scrubbing import scrub


class HubError(UserError):
    """Raised if the Hub or this package rejects something: the original message and one sentence with the remedy."""


@dataclass(frozen=True)
class _Advice:
    """A remedy for errors of certain classes, with certain HTTP statuses, or with certain words in the message.

    Classes are compared by name, so that this module does not have to import the clients.
    """

    text: str
    kinds: tuple[str, ...] = ()  # names of exception classes or of their bases
    statuses: tuple[int, ...] = ()  # HTTP statuses of the response
    words: str = ""  # regular expression to search for in the message

    def fits(self, error: BaseException) -> bool:
        named = {kind.__name__ for kind in type(error).__mro__} & set(self.kinds)
        said = self.words and re.search(self.words, str(error))
        return bool(named or said) or status_of(error) in self.statuses


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token from https://huggingface.co/settings/tokens"
UPDATE = "update with `pip install -U hf_mmbalance transformers`, or give a revision that was made by your version"

# The first entry that matches any error of the chain is used, so specific entries come before general ones.
_ADVICE = (
    _Advice(
        "Give a branch, tag or commit that exists; they are listed on the repository's page.",
        words=r"Revision Not Found|is not a valid git identifier|[Rr]evision '.*' (doesn't|does not) exist",
    ),
    _Advice(f"Ask for access on the repository's page, then {LOG_IN}.", kinds=("GatedRepoError",)),
    _Advice(
        "Read the code on the repository's page; if you trust it, pass trust_remote_code=True with a pinned revision.",
        words=r"contains custom code which must|references custom code|execute custom code",
    ),
    _Advice(
        f"The repository has no code for its model type, or needs a newer version: {UPDATE}, or push it again with"
        " its code (`model.push_to_hub`).",
        words=r"does not recognize this architecture|Unrecognized (model|processing class|configuration class)",
    ),
    _Advice(
        f"Its config was made by a different version or by hand: {UPDATE}.",
        kinds=("StrictDataclassError",),
    ),
    _Advice(
        "Delete the cached copy (`hf cache ls` names it) and load again; if the error persists, the upload was"
        " interrupted: push again.",
        kinds=("SafetensorError",),
    ),
    _Advice(
        "The repository does not have that file at this revision: if its upload was interrupted, push again (complete"
        " files are not sent twice); otherwise, give a different revision.",
        kinds=("RemoteEntryNotFoundError", "DataFilesNotFoundError", "EmptyDatasetError"),
        words=r"does not appear to have (a file|files) named|no file named|Unable to find '.*hf://",
    ),
    _Advice(
        "Give one of the configurations that the message lists.",
        words=r"Config name is missing|BuilderConfig .* not found",
    ),
    _Advice(
        "Correct the YAML between the two --- lines at the top of the card and push again.",
        words=r"Invalid metadata in README",
    ),
    _Advice(f"Your token is not valid: {LOG_IN}.", words=r"Invalid credentials"),
    _Advice(
        "A repository is named user/name, with letters, digits and . _ -; a folder must exist on this machine.",
        kinds=("HFValidationError", "HfUriError"),
    ),
    _Advice(
        "Check the name (user/name) and the kind of repository (model, dataset or space); for a private"
        f" one, {LOG_IN} that can read it.",
        words=r"Repository Not Found|not a valid model identifier|doesn't exist on the Hub or cannot be accessed"
        r"|not a (local folder or a )?valid repository name|Couldn't find any data file|Couldn't find a module script",
    ),
    _Advice(
        "Unset HF_HUB_OFFLINE, or run the command once without it to fill the cache.",
        kinds=("OfflineModeIsEnabled",),
    ),
    _Advice(
        "Someone else pushed at the same time; their changes are not lost: run the same command again.",
        statuses=(409, 412),
    ),
    _Advice(f"This needs a login: {LOG_IN}.", kinds=("LocalTokenNotFoundError",), statuses=(401,)),
    _Advice(
        "Your token has no right to do this: to read, ask the owner for access; to push, use a token with write access"
        " to that user or organization, or push to your own namespace.",
        statuses=(403,),
    ),
    _Advice("The Hub has no space left for this: free some storage or make the files smaller.", statuses=(413, 507)),
    _Advice("The Hub asks you to slow down: wait a few minutes and run the same command again.", statuses=(429,)),
    _Advice(
        "The Hub has a temporary error: run the same command again later; complete files are not sent again.",
        statuses=tuple(range(500, 600)),
    ),
    _Advice(
        "Check the network and HF_ENDPOINT and run the same command again; complete files are kept.",
        kinds=(
            *("TransportError", "ConnectionError", "TimeoutError"),
            *("LocalEntryNotFoundError", "RevisionResolutionError"),
        ),
        words=r"[Cc]ouldn't (connect|reach)|specific connection error",
    ),
    _Advice(
        "Its processor is missing or broken: push the model again with its processor (`mmbalance push`).",
        words=r"Can't load (feature extractor|image processor|processor) for",
    ),
    _Advice("The Hub does not accept this: correct the problem that its message describes.", statuses=(400, 422)),
)
_DISK_FULL = (
    "The disk is full: make room, or set HF_HOME to a folder on a larger disk, and run the same command again;"
    " complete files are kept."
)


def chain_of(error: BaseException) -> list[BaseException]:
    """Return the error and its causes, outermost first."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return chain


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the response that caused an error, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def advice_for(error: BaseException) -> str | None:
    """Return one sentence with the remedy, or None for an error that is not about the Hub."""
    chain = chain_of(error)
    full = (errno.ENOSPC, errno.EDQUOT)
    if any(isinstance(link, OSError) and link.errno in full for link in chain):
        return _DISK_FULL
    if "No space left on device" in str(error):
        return _DISK_FULL
    return next((advice.text for advice in _ADVICE if any(advice.fits(link) for link in chain)), None)


@contextmanager
def explain_hub_errors(action: str) -> Iterator[None]:
    """Convert errors of Hub clients to a `HubError` that names the action and the remedy.

    Args:
        action: Current action, e.g. `"loading me/model"`; the message begins with it.

    Raises:
        HubError: for every error that is known to be about the Hub, with the original as its cause. Other errors stay
            unchanged. Tokens are removed from all messages, including those of the original errors.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        for link in chain_of(error):
            link.args = tuple(_clean(part) for part in link.args)
        advice = advice_for(error)
        if advice is None:
            raise
        raise HubError(f"{action}: {_said(error)}\n{advice}") from error


def _clean(part: Any) -> Any:
    return scrub(part) if isinstance(part, str) else part


def _said(error: BaseException) -> str:
    """Return the client's message, followed by the server's reply if the message does not give the reason."""
    text = str(error).strip() or type(error).__name__
    answer = next((link for link in chain_of(error) if status_of(link) is not None), None)
    if answer is not None and text.startswith(("Error while uploading", "We couldn't connect")):
        text += f"\n{str(answer).strip()}"
    return scrub(text)
