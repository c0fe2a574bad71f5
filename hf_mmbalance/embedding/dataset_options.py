"""Dataset options for commands that read clips: the options of `train.py`, for any dataset."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from typing import Any

from hf_mmbalance.data import load_clips, options_class
from hf_mmbalance.data.clips import ClipSplits, DataError
from hf_mmbalance.data.sources import SOURCES, options_class_of, typed_name


#: Options that --help shows; the others are accepted too.
SHOWN = "label_column group_column group_pattern data_dir label window frames crop test_fraction".split()


def add_dataset_options(parser: argparse.ArgumentParser, hidden: tuple[str, ...] = ()) -> None:
    """Add the options of every kind of dataset except `hidden`; `load_dataset` rejects those of other datasets."""
    group = parser.add_argument_group("dataset", "all dataset options of train.py are accepted, e.g.")
    known: dict[str, dataclasses.Field] = {}
    owners: dict[str, list[str]] = {}
    for source in SOURCES:
        for entry in dataclasses.fields(options_class_of(source)):
            known.setdefault(entry.name, entry)
            owners.setdefault(entry.name, []).append(source)
    for name, entry in known.items():
        if name in hidden:
            continue
        text = str(entry.metadata.get("help", "")).replace("%", "%%")
        if owners[name] == ["grid"]:
            text = f"GRID only: {text[:1].lower()}{text[1:]}"
        shown = text if name in SHOWN else argparse.SUPPRESS
        # The number and type of the values depend on the dataset, so `load_dataset` converts them.
        group.add_argument(
            _flag(name), dest=f"data.{name}", nargs="+", metavar="X", default=argparse.SUPPRESS, help=shown
        )


def load_dataset(arguments: argparse.Namespace, **more: Any) -> tuple[ClipSplits, Any]:
    """Load the clips given on the command line, and return them with the options used.

    Args:
        arguments: parsed arguments with `dataset` and the options that `add_dataset_options` added.
        **more: options that the command sets itself; options that the dataset does not have are left out.

    Raises:
        DataError: the dataset does not have one of the options, or its clips cannot be used.
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
    """Convert the words given for an option to the type of its field.

    Raises:
        DataError: the words are not a value of the option; the message names the option.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    several = typing.get_origin(hint) is list
    kind = typing.get_args(hint)[0] if several else hint
    if not several and len(words) > 1:
        raise DataError(f"{flag} takes one value, got {' '.join(words)}: put the dataset before the options")
    try:
        values = [_truth(word) if kind is bool else kind(word) for word in words]
    except (ValueError, KeyError):
        raise DataError(f"{flag} {' '.join(words)}: expected {kind.__name__}") from None
    return values if several else values[0]


def _truth(word: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[word.lower()]
