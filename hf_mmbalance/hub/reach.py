"""Whether a model is here or the Hub answers, asked once before its clients try again and again."""

from __future__ import annotations

from pathlib import Path

from hf_mmbalance.hub.errors import HubError


PROBE_SECONDS = 5.0


def check_reachable(name: str, revision: str | None = None) -> None:
    """Refuse a model that is neither here nor to be had, before a client tries it again and again.

    Args:
        name: Folder, or repository on the Hub.
        revision: Branch, tag or commit.

    Raises:
        HubError: the name is neither a folder nor in the cache, and the Hub does not answer.
    """
    from huggingface_hub import constants, get_session, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).exists():
        return
    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
    except HFValidationError:  # the client says what is wrong with it
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
