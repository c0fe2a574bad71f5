"""How a data set on the Hub is read: its columns, labels, groups and splits, in a few lines of YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hf_mmbalance.console import did_you_mean
from hf_mmbalance.data.clips import SPLITS, DataError, split_name


FOLDER = Path(__file__).with_name("adapters")
NONE = "none"  # value of the option that turns the package's own adapter off
COLUMNS = ("audio", "frames", "video", "label", "group", "id", "start", "end")


@dataclass(frozen=True)
class Adapter:
    """What is known of one data set; every field is a key of the YAML file.

    Args:
        name: the file, for messages.
        repository: name on the Hub, `user/name`.
        revision: the commit whose columns the file describes; named in errors, not loaded by itself.
        license: of the data; printed.
        columns: kind of content (`COLUMNS`) -> column.
        group_pattern: regular expression on the group column; its first capturing group is the group.
        labels: names of integer labels, in order; or a mapping from the labels of the data set to classes, where
            clips with other labels are left out.
        splits: split of the data set -> one of `SPLITS`; other splits are not read. None reads all, by their names.
        notes: what a reader of results must know, e.g. what is on both sides of the official splits; printed.
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
        """Licence and notes, as they are printed."""
        licensed = f" (license: {self.license})" if self.license else ""
        return [f"read by the adapter {self.name}{licensed}", *self.notes]

    @property
    def remedy(self) -> str:
        """What to do where the data set is not as the file says."""
        pinned = f"; it describes revision {self.revision}" if self.revision else ""
        return (
            f"the adapter {self.name} names it{pinned}; correct the file, or read without it (dataset_adapter={NONE})"
        )

    def split(self, name: str) -> str | None:
        """Canonical name of a split of the data set; None for one that is not read."""
        if self.splits is None:
            return split_name(name)
        return self.splits.get(name)

    def check_labels(self, dataset: str, known: Iterable[str]) -> None:
        """Refuse a mapping from labels that the data set does not have."""
        names = sorted(known)
        absent = [label for label in self.labels or () if label not in names]
        if absent:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            hint = did_you_mean(absent[0], names)
            raise DataError(f"{dataset}: no label {absent[0]!r}{hint} (it has {shown}); {self.remedy}")


def adapter_names() -> list[str]:
    """Repositories on the Hub that this package has an adapter for."""
    return sorted(path.stem.replace("--", "/", 1) for path in FOLDER.glob("*.yaml"))


def find_adapter(dataset: str, chosen: str | None = None) -> Adapter | None:
    """The adapter of a data set: the file that is named, else the package's own for that repository, if it has one.

    Args:
        dataset: name of the data set.
        chosen: a YAML file; a repository whose adapter is used, e.g. for a copy of it; `none` for no adapter.

    Raises:
        DataError: there is no such file, or it cannot be used.
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
    """File of the package's adapter for a repository."""
    return FOLDER / f"{repository.replace('/', '--', 1)}.yaml"


def read_adapter(path: Path, name: str) -> Adapter:
    """An adapter from its file.

    Raises:
        DataError: no file, no YAML, an unknown key, or a value of another form; names the file, key and remedy.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; dataset_adapter names a YAML file (docs/data.md)") from None
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
