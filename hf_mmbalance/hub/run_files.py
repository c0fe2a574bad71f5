"""Download the results of a run that was pushed with its model, without the weights."""

from __future__ import annotations

from pathlib import Path

from hf_mmbalance.decision.results import RESULTS
from hf_mmbalance.decision.table_files import READERS, RUN_TABLE
from hf_mmbalance.hub.errors import HubError, explain_hub_errors
from hf_mmbalance.hub.model_card import REPO_ID
from hf_mmbalance.hub.reach import check_reachable


def run_files(address: str) -> tuple[Path, list[str]]:
    """Return the local path of a folder or file; for a model on the Hub, download its run's table and results.

    Args:
        address: a folder or file, or a model on the Hub (`user/name` or `user/name@revision`).

    Returns:
        The local path, and for a model on the Hub a note with the revision that was read.

    Raises:
        HubError: there is no such file or model, or the model was pushed without its run.
    """
    path = Path(address)
    name, _, revision = address.partition("@")
    local = path.exists() or path.suffix.lower() in READERS or address.startswith((".", "~"))
    if local or name.count("/") != 1 or not REPO_ID.fullmatch(name):
        return path, []
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    check_reachable(name, revision or None)
    with explain_hub_errors(f"{name}: no such folder or file here; reading the model of that name on the Hub"):
        try:
            table = Path(hf_hub_download(name, RUN_TABLE, revision=revision or None))
        except RemoteEntryNotFoundError:
            raise HubError(
                f"{name} holds no {RUN_TABLE}: the model was pushed without its run. Push the run's output folder"
                f" (`mmbalance push RUN {name}`), or name that folder or a decision table of the same clips"
            ) from None
        commit = table.parent.name  # commit of the snapshot in the cache, so that both files come from the same one
        try:
            hf_hub_download(name, RESULTS, revision=commit)
        except RemoteEntryNotFoundError:
            pass  # then the seeds and the head of the run stay unknown
    return table.parent, [f"{name} on the Hub, revision {commit}"]
