"""Options of the data set for commands that read clips: those of `train.py`, for whichever data set is named."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from typing import Any

from hf_mmbalance.data import load_clips, options_class
from hf_mmbalance.data.clips import ClipSplits, DataError
from hf_mmbalance.data.sources import SOURCES


#: Shown by --help; the others are taken as well.
SHOWN = ("label_column", "group_column", "group_pattern", "data_dir", "label", "window", "frames", "crop")


def add_dataset_options(parser: argparse.ArgumentParser, hidden: tuple[str, ...] = ()) -> None:
    """Add the options of every kind of data set, less those in `hidden`; `load_dataset` refuses foreign ones."""
    group = parser.add_argument_group("data set", "all options of train.py for the data set are taken, e.g.")
    known: dict[str, dataclasses.Field] = {}
    hints: dict[str, Any] = {}
    for source in SOURCES:
        kind = _class_of(source)
        known |= {entry.name: entry for entry in dataclasses.fields(kind) if entry.name not in known}
        hints |= typing.get_type_hints(kind)
    for name, entry in known.items():
        if name in hidden:
            continue
        text = str(entry.metadata.get("help", "")).replace("%", "%%")
        shown = text if name in SHOWN else argparse.SUPPRESS
        flag = "--clip_seed" if name == "seed" else f"--{name}"
        group.add_argument(flag, dest=f"data.{name}", default=argparse.SUPPRESS, help=shown, **_reader(hints[name]))


def load_dataset(arguments: argparse.Namespace, **more: Any) -> tuple[ClipSplits, Any]:
    """The clips that the command line names, and the options they were read with.

    Args:
        arguments: with `dataset` and what `add_dataset_options` added.
        **more: options that the command sets itself; those that the data set does not know are left out.

    Raises:
        DataError: an option that this data set does not have, or clips that cannot be used.
    """
    given = {name.removeprefix("data."): value for name, value in vars(arguments).items() if name.startswith("data.")}
    kind = options_class(arguments.dataset)
    known = {entry.name for entry in dataclasses.fields(kind)}
    foreign = sorted(set(given) - known)
    if foreign:
        raise DataError(f"--{foreign[0]} is not an option of {arguments.dataset}: it has {', '.join(sorted(known))}")
    options = {**{name: value for name, value in more.items() if name in known}, **given}
    return load_clips(arguments.dataset, **options), kind(**options)


def _class_of(source: str) -> type:
    import importlib

    module, name, _ = SOURCES[source]
    return getattr(importlib.import_module(f"hf_mmbalance.data.{module}"), name)


def _reader(hint: Any) -> dict[str, Any]:
    """How argparse reads a field of this type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is list:
        return {"nargs": "+", "type": typing.get_args(hint)[0], "metavar": "X"}
    if hint is bool:
        return {"type": _truth, "metavar": "BOOL"}
    return {"type": hint if hint in (int, float) else str, "metavar": "X"}


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1", "yes")
