"""Progress of long work: a bar on a terminal, an occasional line in a log file."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from hf_mmbalance.console import say


SECONDS = 60.0  # between lines


def bar(items: Iterable[Any] | None = None, *, disable: bool = False, **options: Any) -> tqdm:
    """Return a `tqdm` bar on standard error; if that is not a terminal, it prints a line every minute instead.

    Args:
        items: items to iterate over; None if the caller reports progress with `update`.
        disable: show nothing, e.g. in processes other than the main one.
        **options: options of `tqdm`.
    """
    if disable or sys.stderr.isatty():
        return tqdm(items, disable=disable, **options)
    return _Lines(items, **options)


@contextmanager
def without_transformers_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, such as the one for the single file of every checkpoint."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class _Lines(tqdm):
    def __init__(self, items: Iterable[Any] | None, **options: Any):
        lines = {
            "bar_format": "{desc}: {n_fmt} of {total_fmt} in {elapsed}, {remaining} left",
            "file": io.StringIO(),  # tqdm writes here to clear the bar
            "leave": False,
            **{name: SECONDS for name in ("delay", "mininterval", "maxinterval")},
            "miniters": 1,
        }
        super().__init__(items, **{**options, **lines})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        text = str(self) if msg is None else msg
        if text:
            say(text, aside=True)
