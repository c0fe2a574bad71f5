"""Options of the data set for commands that read clips: those of `train.py`, for whichever data set is named."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from typing import Any

from hf_mmbalance.data import load_clips, options_class
from hf_mmbalance.data.clips import ClipSplits, DataError
from hf_mmbalance.data.sources import SOURCES, options_class_of, typed_name


#: Shown by --help; the others are taken as well.
SHOWN = "label_column group_column group_pattern data_dir label window frames crop test_fraction".split()


def add_dataset_options(parser: argparse.ArgumentParser, hidden: tuple[str, ...] = ()) -> None:
    """Add the options of every kind of data set, less those in `hidden`; `load_dataset` refuses foreign ones."""
    group = parser.add_argument_group("data set", "all options of train.py for the data set are taken, e.g.")
    known: dict[str, dataclasses.Field] = {}
    for source in SOURCES:
        known |= {
            entry.name: entry for entry in dataclasses.fields(options_class_of(source)) if entry.name not in known
        }
    for name, entry in known.items():
        if name in hidden:
            continue
        text = str(entry.metadata.get("help", "")).replace("%", "%%")
        shown = text if name in SHOWN else argparse.SUPPRESS
        # How many values, and of which type, depends on the data set: `load_dataset` reads them.
        group.add_argument(
            _flag(name), dest=f"data.{name}", nargs="+", metavar="X", default=argparse.SUPPRESS, help=shown
        )


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
        raise DataError(
            f"{_flag(foreign[0])} is not an option of {arguments.dataset}:"
            f" it has {', '.join(sorted(map(typed_name, known)))}"
        )
    hints = typing.get_type_hints(kind)
    read = {name: _read(_flag(name), hints[name], words) for name, words in given.items()}
    options = {**{name: value for name, value in more.items() if name in known}, **read}
    return load_clips(arguments.dataset, **options), kind(**options)


def _flag(name: str) -> str:
    return f"--{typed_name(name)}"


def _read(flag: str, hint: Any, words: list[str]) -> Any:
    """The value of a field of this type from the words that were given.

    Raises:
        DataError: not a value of the option; names the option.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    several = typing.get_origin(hint) is list
    kind = typing.get_args(hint)[0] if several else hint
    if not several and len(words) > 1:
        raise DataError(f"{flag} takes one value, got {' '.join(words)}: put the data set before the options")
    try:
        values = [_truth(word) if kind is bool else kind(word) for word in words]
    except (ValueError, KeyError):
        raise DataError(f"{flag} {' '.join(words)}: expected {kind.__name__}") from None
    return values if several else values[0]


def _truth(word: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[word.lower()]
