"""Adapters: a few lines of YAML that say how to read a Hub dataset (its columns, labels, groups and splits)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hf_mmbalance.console import did_you_mean
from hf_mmbalance.data.clips import SPLITS, DataError, split_name
from hf_mmbalance.yaml_files import load_yaml


FOLDER = Path(__file__).with_name("adapters")
NONE = "none"  # option value that turns off the package's own adapter
COLUMNS = ("audio", "frames", "video", "label", "group", "id", "start", "end")


@dataclass(frozen=True)
class Adapter:
    """Description of one dataset; every field except `name` is a key of the YAML file.

    Args:
        name: file or repository of the adapter, for messages.
        repository: name of the dataset on the Hub, `user/name`.
        revision: commit whose columns the file describes; named in errors, but not used to load the dataset.
        license: licence of the data; printed.
        columns: mapping from the kind of content (one of `COLUMNS`) to the column.
        group_pattern: regular expression for the group column; its first capturing group is the group.
        labels: names of integer labels, in order; or a mapping from the labels of the dataset to classes. Clips whose
            label is not in the mapping are left out.
        splits: mapping from the splits of the dataset to `SPLITS`; other splits are not read. None reads all splits,
            by their names.
        notes: what users of the results must know, e.g. what the official splits have in common; printed.
    """

    name: str
    repository: str | None = None
    revision: str | None = None
    license: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    group_pattern: str | None = None
    labels: list[str] | Mapping[str, str] | None = None
    splits: Mapping[str, str] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """Licence and notes, as printed for the user."""
        licensed = f" (license: {self.license})" if self.license else ""
        return [f"read by the adapter {self.name}{licensed}", *self.notes]

    @property
    def remedy(self) -> str:
        """What the user can do if the dataset does not match the file."""
        pinned = f"; it describes revision {self.revision}" if self.revision else ""
        return (
            f"the adapter {self.name} names it{pinned}; correct the file, or read without it (dataset_adapter={NONE})"
        )

    def split(self, name: str) -> str | None:
        """Return the canonical name of a split of the dataset, or None if the split is not read."""
        if self.splits is None:
            return split_name(name)
        return self.splits.get(name)

    def check_labels(self, dataset: str, known: Iterable[str]) -> None:
        """Check that the dataset has every label that the adapter maps."""
        names = sorted(known)
        absent = [label for label in self.labels or () if label not in names]
        if absent:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            hint = did_you_mean(absent[0], names)
            raise DataError(f"{dataset}: no label {absent[0]!r}{hint} (it has {shown}); {self.remedy}")


def adapter_names() -> list[str]:
    """Return the Hub repositories that this package has an adapter for."""
    return sorted(path.stem.replace("--", "/", 1) for path in FOLDER.glob("*.yaml"))


def find_adapter(dataset: str, chosen: str | None = None) -> Adapter | None:
    """Return the adapter of a dataset: the chosen one, else the package's own for that repository, if any.

    Args:
        dataset: name of the dataset.
        chosen: a YAML file; a repository whose adapter to use, e.g. for a copy of it; or `none` for no adapter.

    Raises:
        DataError: the file does not exist or cannot be used.
    """
    if chosen == NONE:
        return None
    if chosen is not None and chosen not in adapter_names():
        if not chosen.endswith((".yaml", ".yml")):
            names = adapter_names()
            hint = did_you_mean(chosen, names)
            raise DataError(
                f"dataset_adapter {chosen!r} is neither a YAML file nor {NONE}{hint} (there are adapters for"
                f" {', '.join(names)})"
            )
        return read_adapter(Path(chosen), chosen)
    repository = chosen or dataset
    return read_adapter(own_file(repository), repository) if repository in adapter_names() else None


def own_file(repository: str) -> Path:
    """Return the file of the package's adapter for a repository."""
    return FOLDER / f"{repository.replace('/', '--', 1)}.yaml"


def read_adapter(path: Path, name: str) -> Adapter:
    """Read an adapter from its file.

    Raises:
        DataError: the file is missing or not YAML, a key is unknown, or a value has the wrong form; the message names
            the file, the key and the remedy.
    """
    try:
        found = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; dataset_adapter must be a YAML file (docs/data.md)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {error}") from None
    found = _mapping(path, "the file", found)
    known = [entry.name for entry in fields(Adapter) if entry.name != "name"]
    for key in found:
        _check_key(path, "key", str(key), known)
    for key in ("repository", "revision", "license", "group_pattern"):
        if not isinstance(found.get(key), str | None):
            raise DataError(f"{path}: {key} must be text, got {found[key]!r}")
    columns = _mapping(path, "columns", found.get("columns") or {})
    for key in columns:
        _check_key(path, "kind of column", key, COLUMNS)
    splits = None if found.get("splits") is None else _mapping(path, "splits", found["splits"])
    for key, value in (splits or {}).items():
        _check_key(path, f"split for {key!r}:", value, SPLITS)
    labels, notes = found.get("labels"), found.get("notes") or []
    if isinstance(labels, Mapping):
        labels = _mapping(path, "labels", labels)
    elif labels is not None:
        labels = _texts(path, "labels", labels)
    return Adapter(**found | {"name": name, "columns": columns, "splits": splits, "labels": labels,
                              "notes": _texts(path, "notes", notes)})  # fmt: skip


def _check_key(path: Path, what: str, key: str, known: Iterable[str]) -> None:
    names = list(known)
    if key not in names:
        hint = did_you_mean(key, names)
        raise DataError(f"{path}: unknown {what} {key!r}{hint} (known are {', '.join(names)})")


def _mapping(path: Path, what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: {what} must hold `name: value` lines, got {value!r}")
    if what == "the file":
        return dict(value)
    return {
        _text(path, f"{what}: the name", key): _text(path, f"{what}: the value of {key!r}", text)
        for key, text in value.items()
    }


def _texts(path: Path, what: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise DataError(f"{path}: {what} must be a list, got {value!r}")
    return [_text(path, f"{what}: an entry", item) for item in value]


def _text(path: Path, what: str, value: Any) -> str:
    if isinstance(value, (Mapping, list, bool)) or value is None:
        hint = " (yes, no, on and off must be in quotes)" if isinstance(value, bool) else ""
        raise DataError(f"{path}: {what} must be text, got {value!r}{hint}")
    return str(value)
