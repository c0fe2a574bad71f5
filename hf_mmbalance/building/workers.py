"""Worker processes that can crash: a crash is reported to the caller, and no worker outlives its parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any


# A request is answered by a generator: it yields progress and returns (or raises) the answer.
Answer = Generator[Any, None, Any]
Work = Callable[[Any], Answer]
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

# Spawned, not forked: a worker must not inherit torch, or other threads' locks, from the caller.
_context = multiprocessing.get_context("spawn")


class WorkerDied(RuntimeError):
    """Raised when a worker ends before it answers; the message names the signal or exit status."""


class Worker:
    """Process that answers requests one after the other.

    Args:
        work: function that answers a request; it is pickled, as are all requests and answers.
    """

    def __init__(self, work: Work):
        self.connection, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs, work))
        with _ctrl_c_blocked():
            self.process.start()
        theirs.close()  # so that the pipe closes when the process ends

    def send(self, request: Any) -> None:
        """Send a request; its answer is read with `receive`."""
        try:
            self.connection.send(request)
        except OSError:  # the process has ended, which `receive` reports
            pass

    def receive(self) -> tuple[bool, Any]:
        """Wait for the next message.

        Returns:
            True and the answer, or False and the progress.

        Raises:
            WorkerDied: the process ended before it answered.
            Exception: the error that `work` raised.
        """
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self.process.join()
            raise WorkerDied(_how_it_ended(self.process.exitcode)) from None
        if kind == "error":
            raise content
        return kind == "answer", content

    def answer(self, request: Any) -> Any:
        """Send a request and return its answer, ignoring progress. Errors are as in `receive`."""
        self.send(request)
        answered = False
        while not answered:
            answered, content = self.receive()
        return content

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Protect processes started inside from Ctrl-C, even while they start; the caller receives it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else it would start with the first process, and unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ready(workers: list[Worker], timeout: float) -> list[Worker]:
    """Return the workers that have something to receive, after at most `timeout` seconds."""
    found = wait([worker.connection for worker in workers], timeout)
    return [worker for worker in workers if worker.connection in found]


def _serve(connection: Connection, work: Work) -> None:
    die_with_parent()
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            answer = work(request)
            while True:
                try:
                    connection.send(("progress", next(answer)))
                except StopIteration as end:
                    connection.send(("answer", end.value))
                    break
        except Exception as error:
            connection.send(("error", _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """Return the error itself if it can be pickled, else an error with its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def die_with_parent() -> None:
    """Make this process end when its parent does, even by SIGKILL, and leave Ctrl-C to the parent.

    Linux sends the signal itself, even while a decoder holds the interpreter. On other systems, a thread waits for the
    pipe that closes when the parent dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"exit status {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"{name}, often out of memory" if name == "SIGKILL" else name
