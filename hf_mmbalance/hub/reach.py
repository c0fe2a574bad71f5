"""Check once that a model is local or that the Hub responds, before clients start to retry."""

from __future__ import annotations

from pathlib import Path

from hf_mmbalance.hub.errors import HubError


PROBE_SECONDS = 5.0


def check_reachable(name: str, revision: str | None = None) -> None:
    """Check that a model exists locally or that the Hub responds, so that clients do not retry in vain.

    Args:
        name: Folder, or repository on the Hub.
        revision: Branch, tag or commit.

    Raises:
        HubError: the name is neither a folder nor in the cache, and the Hub does not respond.
    """
    from huggingface_hub import constants, get_session, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).exists():
        return
    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
    except HFValidationError:  # the client will report what is wrong with the name
        return
    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:
        raise HubError(
            f"{name}: there is no such folder, the cache holds no such model, and {constants.ENDPOINT} does not answer"
            f" ({type(error).__name__}). Check the name; if it is right, check the network and HF_ENDPOINT."
        ) from error
