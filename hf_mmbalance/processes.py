"""Coordination of the processes of one launch: they train together, or the run does not start."""

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

    `accelerate launch` does not pass on the `use_cpu: true` of its config file. Without this function, each process
    would assume that it is the only one and train by itself.
    """
    if launched_processes() > 1 and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def launched_processes() -> int:
    """Return the number of processes that the launcher started, from its environment variables."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_joined(world_size: int) -> None:
    """Check that all launched processes joined, so that they do not train as separate runs.

    Raises:
        ValueError: if fewer processes joined than were launched.
    """
    if world_size != launched_processes():
        raise ValueError(
            f"{launched_processes()} processes were launched but {world_size} joined, so each would train by itself:"
            " on a CPU use accelerate_configs/cpu_2proc.yaml, and add --use_cpu true on a machine with a GPU"
        )


def call_in_main_process(question: Callable[[], Answer]) -> Answer:
    """Call `question` in the main process only, and return its answer, or raise its error, in every process.

    Used for reads from disk, which could differ between processes while one of them writes there.
    """
    state = PartialState()
    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = question()
        except Exception as error:  # of any kind, since the other processes wait for an answer
            answer[1] = error
    if state.num_processes > 1:
        told = broadcast_object_list([answer[0], _portable(answer[1])])
        answer = answer if state.is_main_process else told
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _portable(error: Exception | None) -> Exception | None:
    """Return an error that can be sent to another process: the error itself, or one with the same message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling and unpickling fail with many types of errors
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Like accelerate's, but if the main process fails, the others continue and fail too instead of waiting for it."""
    state = PartialState()
    if not state.is_local_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_local_main_process:
            state.wait_for_everyone()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` while this one trains; the system releases the lock when the process ends.

    A killed launcher leaves its processes behind, and they continue to train and save. The checkpoints of a run
    resumed at the same time would be mixed with theirs.

    Raises:
        ValueError: if another run is still training there.
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

    call_in_main_process(take)
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # a folder that holds nothing but the lock is removed with it
                (folder / LOCK).unlink()
                folder.rmdir()
            lock.release()
