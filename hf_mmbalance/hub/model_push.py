"""Push models to the Hub: weights, configs, code, pipeline, card and results of the run, in one tagged commit."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from hf_mmbalance.decision.results import RESULTS
from hf_mmbalance.decision.table_files import RUN_TABLE
from hf_mmbalance.hub.commit import open_repo, push_folder, with_retries
from hf_mmbalance.hub.errors import HubError, explain_hub_errors
from hf_mmbalance.hub.model_card import (
    CARD,
    DIAGNOSIS,
    NUMBERS,
    PICTURE,
    pinned_revision,
    plain_card,
    write_card,
)


if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PreTrainedModel, ProcessorMixin

logger = logging.getLogger(__name__)

#: Files of a saved model: weights (one file, or shards and their index), configs, code.
MODEL_FILES = ("model*.safetensors", "model.safetensors.index.json", "config.json", "processor_config.json", "*.py")
RUN_FILES = (RESULTS, RUN_TABLE, PICTURE, DIAGNOSIS, NUMBERS)
#: Files of an earlier push that are deleted if this push does not have them: shards, and results of other weights.
STALE = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json", *RUN_FILES)
#: Subfolders are not pushed: they contain checkpoints with other weights, and code that is not part of the model.
NOT_THE_MODEL = ("*/*",)


def push_model(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    repo_id: str,
    *,
    message: str = "Upload model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Push a model and its processor with code, pipeline and a card in one commit, and tag it.

    Args:
        model: An `MMBalanceForAudioVisualClassification`.
        processor: Its `MMBalanceProcessor`.
        repo_id: `user/name`, or `name` for your own.
        message: Title of the commit.
        private: Make a new repository private (True) or public (False); None uses the account's default.
        revision: Branch, default `main`.
        token: Access token; None uses the one of `hf auth login` or `HF_TOKEN`.

    Returns:
        The commit.

    Raises:
        HubError: the push fails; the message is the client's error and one sentence with the remedy.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return push_saved(folder, repo_id, message=message, private=private, revision=revision, token=token)


def push_saved(
    folder: Path,
    repo_id: str,
    *,
    message: str = "Upload trained model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Push and tag a saved model: the output folder of a run (with results and diagnosis), or any saved model.

    An existing card is pushed unchanged; otherwise, a card is written first. All other arguments are as in
    `push_model`.

    Raises:
        HubError: the folder has no saved model, or the push fails as in `push_model`.
    """
    _check_saved(folder)
    repo_id = prepare_repo(repo_id, private=private, revision=revision, token=token)
    if not (folder / CARD).is_file():
        if (folder / RESULTS).is_file() and (folder / RUN_TABLE).is_file():
            write_card(folder, repo_id)
        else:
            (folder / CARD).write_text(plain_card(folder, repo_id), encoding="utf-8")
    else:
        _warn_of_outdated_card(folder, repo_id)
    return _push_and_tag(folder, repo_id, message, private, revision, token)


def _warn_of_outdated_card(folder: Path, repo_id: str) -> None:
    """Warn about a card from an earlier push, which names a different repository or a revision with other weights."""
    text = (folder / CARD).read_text(encoding="utf-8")
    for name in (repo_id, pinned_revision(folder)):
        if not re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text):
            remedy = "rewrite the card of a run with `mmbalance card`; delete any other card, and it is written again"
            logger.warning("%s does not name %s, which is pushed: %s", folder / CARD, name, remedy)


def _check_saved(folder: Path) -> None:
    missing = [
        name for name in ("model*.safetensors", "config.json", "processor_config.json") if not any(folder.glob(name))
    ]
    if missing:
        raise HubError(
            f"{folder} holds no {missing[0]}; give the output folder of a finished training run, or any"
            " folder with a saved model and processor"
        )


def prepare_repo(
    repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | bool | None = None
) -> str:
    """Create the repository and branch if missing, and check write access, so that problems show before training.

    Returns:
        The full name of the repository.

    Raises:
        HubError: no token, no write access, an invalid name, or a public repository that must be private.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="hf_mmbalance")
    with explain_hub_errors(f"pushing to model {repo_id}"):
        repo = with_retries(lambda: open_repo(api, repo_id, "model", private, revision, None))
        with_retries(lambda: api.auth_check(repo, write=True))
    return repo


def push_checkpoint(
    folder: Path, repo_id: str, *, message: str, revision: str | None = None, token: str | bool | None = None
) -> CommitInfo:
    """Push the model of a training checkpoint; its optimizer state is a pickle, so it is not pushed."""
    inside = tuple(f"{part}/{name}" for part in ("checkpoint-*", "last-checkpoint") for name in CHECKPOINT_FILES)
    return push_folder(
        folder, repo_id, message=message, allow_patterns=[*MODEL_FILES, *inside], revision=revision, token=token
    )


CHECKPOINT_FILES = (*MODEL_FILES, "trainer_state.json")


def _push_and_tag(
    folder: Path,
    repo_id: str,
    message: str,
    private: bool | None,
    revision: str | None,
    token: str | bool | None,
) -> CommitInfo:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*about to commit a data file")  # the decision table belongs here
        return push_folder(
            folder,
            repo_id,
            message=message,
            allow_patterns=[*MODEL_FILES, CARD, *RUN_FILES],
            ignore_patterns=NOT_THE_MODEL,
            delete_patterns=STALE,
            private=private,
            revision=revision,
            token=token,
            tag=pinned_revision(folder),
        )
