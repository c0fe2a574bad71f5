"""Stop signals: a run saves a checkpoint and prints how to resume it, and does not outlive its launcher."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import torch
from accelerate import PartialState
from transformers import TrainerCallback


if TYPE_CHECKING:
    from hf_mmbalance.training.trainer import MMBalanceTrainer

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Interrupted(Exception):
    """Raised when a signal has stopped training and a checkpoint is saved.

    Args:
        number: number of the signal.
        step: number of optimiser steps done.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number = number


class StopOnSignal(TrainerCallback):
    """Context in which SIGTERM and Ctrl-C end training after the current step, with a checkpoint.

    The model is not evaluated in the middle of an epoch: a resumed run must choose its best checkpoint among the same
    epochs as a run that was never stopped. A second Ctrl-C interrupts at once.
    """

    def __init__(self, trainer: MMBalanceTrainer):
        self.trainer, self.number = trainer, 0
        trainer.add_callback(self)

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def _mid_epoch(self, state: Any) -> bool:
        return bool(state.global_step % self.trainer.steps_per_epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if PartialState().num_processes > 1:  # all processes stop after the same step, whichever got the signal
            received = torch.tensor(self.number, device=PartialState().device)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
            self.number = int(received)
        if self.number:
            control.should_training_stop = True
            control.should_save = control.should_save or self._mid_epoch(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.number:
            control.should_save = not self._mid_epoch(state)
            control.should_evaluate = control.should_evaluate and not self._mid_epoch(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.number:
            raise Interrupted(self.number, state.global_step)
        self.__exit__()  # the final fit follows; it writes no checkpoint for which a signal would have to wait


def follow_launcher() -> None:
    """Under `accelerate launch` on Linux, have the system send SIGTERM to this process when the launcher ends.

    The launcher of a single process does not pass signals on, so training would continue without it.
    """
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:  # set by the launcher
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
