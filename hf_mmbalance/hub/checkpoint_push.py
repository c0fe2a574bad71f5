"""Push checkpoints in the background during training."""

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

NOT_PUSHED = "a checkpoint was not pushed, training continues: %s"


class CheckpointPushes:
    """Pushes the checkpoints of one run to the Hub, one after the other, while training continues.

    If a push fails, it logs a warning and training continues; the next push includes the files that it missed.

    Args:
        repo_id: Repository, which must exist.
        args: Training arguments. `hub_strategy` decides what is pushed: with `every_save` and `checkpoint`, the model
            of each checkpoint to the top of the repository; with `checkpoint`, also to `last-checkpoint/`; with
            `all_checkpoints`, also to `checkpoint-N/`; with `end`, nothing.
    """

    def __init__(self, repo_id: str, args: TrainingArguments):
        self.repo_id, self.args = repo_id, args
        self.strategy = HubStrategy(args.hub_strategy)
        self._running: Future[None] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hub-push")

    def add(self, checkpoint: Path, message: str) -> None:
        """Push a checkpoint; skip it if the last push is still running, unless `hub_always_push` is set."""
        if self.strategy == HubStrategy.END:
            return
        if self._running is not None and not self._running.done() and not self.args.hub_always_push:
            logger.warning("%s is not pushed: the previous push is still running", checkpoint.name)
            return
        try:
            staged = self._stage(checkpoint)
        except OSError as error:  # e.g. the disk is full and does not support links
            logger.warning(NOT_PUSHED, scrub(str(error)))
            return
        self._running = self._worker.submit(self._push, staged, message)

    def finish(self) -> None:
        """Wait for running pushes."""
        if self._running is not None:
            self._running.result()

    def _stage(self, checkpoint: Path) -> Path:
        """Snapshot the files to push, since training can delete the checkpoint during the push."""
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
        except Exception as error:  # catch everything: a failed push must not end a long training run
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
