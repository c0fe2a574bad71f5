"""Processes of one launch must find each other, or the run must not start."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout


Answer = TypeVar("Answer")
LOCK = ".lock"


def prefer_cpu_where_there_is_no_accelerator() -> None:
    """Let several launched processes join on the CPU.

    `accelerate launch` does not hand on the `use_cpu: true` of its config file; without this each process would take
    itself for the only one and train by itself.
    """
    if launched_processes() > 1 and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def launched_processes() -> int:
    """Processes that the launcher started, by the environment it gives them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_joined(world_size: int) -> None:
    """Refuse to train as several runs side by side.

    Raises:
        ValueError: if fewer processes joined than were launched.
    """
    if world_size != launched_processes():
        raise ValueError(
            f"{launched_processes()} processes were launched but {world_size} joined, so each would train by itself:"
            " on a CPU use accelerate_configs/cpu_2proc.yaml, and add --use_cpu true on a machine with a GPU"
        )


def answered_by_main(question: Callable[[], Answer]) -> Answer:
    """Ask only the main process, and give its answer, or its error, to every process.

    What is read from disk while other processes may write there must not be asked twice.
    """
    state = PartialState()
    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = question()
        except Exception as error:  # of any kind: the others wait for an answer
            answer[1] = error
    if state.num_processes > 1:
        told = broadcast_object_list([answer[0], _portable(answer[1])])
        answer = answer if state.is_main_process else told
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _portable(error: Exception | None) -> Exception | None:
    """An error that can be sent to another process: itself, or one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # what cannot be pickled, or read again, says so in many ways
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """As accelerate's; where that process fails, the others go on, and fail as it did, instead of waiting for it."""
    state = PartialState()
    if not state.is_local_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_local_main_process:
            state.wait_for_everyone()


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` for as long as this one trains; the system lets go when its process ends.

    A launcher that is killed leaves its processes behind, and they train and save on: a run resumed beside them would
    mix its checkpoints with theirs.

    Raises:
        ValueError: if another run is still at work there.
    """
    lock = FileLock(folder / LOCK, timeout=0)

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"another run still writes into {folder}: wait for it or end it (a killed launcher leaves its"
                " processes running: `pkill -f train.py` ends them), then start again"
            ) from None

    answered_by_main(take)
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # a folder in which nothing else was written goes with its lock
                (folder / LOCK).unlink()
                folder.rmdir()
            lock.release()
