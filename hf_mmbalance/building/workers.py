"""Worker processes that may crash: a crash is reported to the caller, and no worker outlives its parent."""

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


# A request is answered by a generator: what it yields is progress, what it returns (or raises) is the answer.
Answer = Generator[Any, None, Any]
Work = Callable[[Any], Answer]
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

# Spawned, not forked: a worker must not inherit torch, or another thread's locks, from whoever calls.
_context = multiprocessing.get_context("spawn")


class WorkerDied(RuntimeError):
    """The worker ended before it answered; the message says by which signal or exit status."""


class Worker:
    """One process that answers requests one after the other.

    Args:
        work: function that answers a request; it is pickled, as are all requests and answers.
    """

    def __init__(self, work: Work):
        self.connection, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs, work))
        with _ctrl_c_blocked():
            self.process.start()
        theirs.close()  # so that the end of the process closes the pipe

    def send(self, request: Any) -> None:
        """Send a request; its answer is read with `receive`."""
        try:
            self.connection.send(request)
        except OSError:  # the process has ended, which `receive` reports
            pass

    def receive(self) -> tuple[bool, Any]:
        """Wait for the next message.

        Returns:
            Whether the request is answered, and the answer or the progress.

        Raises:
            WorkerDied: the process ended instead.
            Exception: raised by `work`.
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
        """Send a request and wait for its answer; progress is ignored. Raises as `receive`."""
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
    """Processes started inside never see Ctrl-C, not even while they start; the caller sees it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # otherwise the first process would start it, and it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ready(workers: list[Worker], timeout: float) -> list[Worker]:
    """Those workers that have something to receive, after at most `timeout` seconds."""
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
    """The error itself where it survives pickling, else its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def die_with_parent() -> None:
    """Make this process end when its parent does, also by SIGKILL; Ctrl-C is left to the parent.

    Linux sends the signal itself, even while a decoder holds the interpreter; elsewhere a thread waits for the pipe
    that the parent's death closes.
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
