"""Pushes during training: checkpoints, in the background."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from hf_mmbalance.hub.model_push import CHECKPOINT_FILES, MODEL_FILES, push_checkpoint
from hf_mmbalance.scrubbing import scrub


logger = logging.get_logger(__name__)

NOT_PUSHED = "a checkpoint was not pushed, training goes on: %s"


class CheckpointPushes:
    """Pushes the checkpoints of one run to the Hub, one after the other, while training continues.

    A push that fails gives a warning and does not stop training; the next one includes what it missed.

    Args:
        repo_id: Repository, which must exist.
        args: `hub_strategy` says what is pushed: with `every_save` and `checkpoint` each checkpoint's model to the
            top of the repository, with `checkpoint` also to `last-checkpoint/`, with `all_checkpoints` also to
            `checkpoint-N/`, with `end` nothing.
    """

    def __init__(self, repo_id: str, args: TrainingArguments):
        self.repo_id, self.args = repo_id, args
        self.strategy = HubStrategy(args.hub_strategy)
        self._running: Future[None] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hub-push")

    def add(self, checkpoint: Path, message: str) -> None:
        """Push a checkpoint; skipped while the last push is still running, unless `hub_always_push`."""
        if self.strategy == HubStrategy.END:
            return
        if self._running is not None and not self._running.done() and not self.args.hub_always_push:
            logger.warning("%s is not pushed: the push before it is still running", checkpoint.name)
            return
        try:
            staged = self._stage(checkpoint)
        except OSError as error:  # e.g. a full disk without support for links
            logger.warning(NOT_PUSHED, scrub(str(error)))
            return
        self._running = self._worker.submit(self._push, staged, message)

    def finish(self) -> None:
        """Wait for running pushes."""
        if self._running is not None:
            self._running.result()

    def _stage(self, checkpoint: Path) -> Path:
        """Snapshot the files to push: training may delete the checkpoint during the push."""
        staged = Path(tempfile.mkdtemp(prefix=".push-", dir=checkpoint.parent))
        try:
            _link_files(checkpoint, staged, MODEL_FILES)
            subfolder = {
                HubStrategy.CHECKPOINT: "last-checkpoint",
                HubStrategy.ALL_CHECKPOINTS: checkpoint.name,
            }.get(self.strategy)
            if subfolder is not None:
                (staged / subfolder).mkdir()
                _link_files(checkpoint, staged / subfolder, CHECKPOINT_FILES)
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return staged

    def _push(self, staged: Path, message: str) -> None:
        try:
            push_checkpoint(staged, self.repo_id, message=message, revision=self.args.hub_revision)
        except Exception as error:  # any error of a client: a failed push must not end a long training run
            logger.warning(NOT_PUSHED, scrub(str(error) or type(error).__name__))
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _link_files(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in source.glob(pattern):
            try:
                os.link(file, target / file.name)
            except OSError:  # a file system without links
                shutil.copy2(file, target / file.name)
