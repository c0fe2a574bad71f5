"""Which labels of a classifier count for which class: by name, spelling and common variants, or as given."""

from __future__ import annotations

import difflib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


#: Names that transformers makes up where a model has none.
PLACEHOLDER = re.compile(r"label_?\d+", re.IGNORECASE)
#: Words that say of what kind a name is; they do not distinguish names.
KINDS = frozenset(("digit", "number", "letter", "emotion"))
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
).split()
#: Spellings of one meaning; the first is the one that all are compared as.
VARIANTS = (
    ("anger", "angry", "ang"),
    ("calm", "calmness"),
    ("contempt", "contemptuous"),
    ("disgust", "disgusted", "dis"),
    ("fear", "fearful", "scared", "afraid", "fea"),
    ("happiness", "happy", "hap", "joy", "joyful"),
    ("neutral", "neu"),
    ("sadness", "sad"),
    ("surprise", "surprised", "sur"),
)
STANDARD = {spelling: words[0] for words in VARIANTS for spelling in words} | {
    word: str(number) for number, word in enumerate(NUMBERS)
}
SHOWN = 20


@dataclass(frozen=True)
class LabelMap:
    """Which source labels count for which class.

    Args:
        classes: every class, in order -> its source labels; none where the classifier does not know the class.
        dropped: source labels that count for no class.
    """

    classes: dict[str, list[str]]
    dropped: list[str]

    @property
    def unknown(self) -> list[str]:
        """Classes that no source label is mapped to."""
        return [name for name, labels in self.classes.items() if not labels]

    def describe(self) -> str:
        """What was mapped, what was dropped and what is unknown, one line each."""
        lines = [f"{name} <- {' + '.join(labels)}" for name, labels in self.classes.items() if labels]
        if self.dropped:
            lines.append(f"left out, as no class has such a name: {_shown(self.dropped)}")
        if self.unknown:
            lines.append(
                f"classes that this classifier does not know, and gives no evidence for: {_shown(self.unknown)}"
            )
        return "\n".join(lines)


def map_labels(
    source: Sequence[str], classes: Sequence[str], given: Mapping[str, str | list[str] | None] | None = None
) -> LabelMap:
    """Map a classifier's labels to classes by name.

    A label counts for the class of the same name; else of the same name but for case, spaces and punctuation;
    else of a common variant of it: plural, -ing, number words, and spellings of emotions (ANG, anger, angry).

    Args:
        source: names of the classifier's labels; those of the same name count for the same class.
        classes: names of the classes.
        given: what the names do not say, before they are compared: a source label -> its class, or None to leave it
            out; or a class -> the list of its source labels.

    Raises:
        ValueError: if `given` names a label or class that does not exist or one label twice, a label fits two classes,
            or less than two classes have a label.
    """
    source, classes = list(dict.fromkeys(map(str, source))), [str(name) for name in classes]
    chosen = _given(source, classes, given or {})
    for label in source:
        if label not in chosen:
            chosen[label] = _class_of(label, classes)
    found = LabelMap(
        {name: [label for label in source if chosen[label] == name] for name in classes},
        [label for label in source if chosen[label] is None],
    )
    known = [name for name in classes if found.classes[name]]
    if len(known) < 2:
        named = [label for label in source if not PLACEHOLDER.fullmatch(label)]
        why = "" if named else "; these are not names, but numbers that the model's author did not replace"
        raise ValueError(
            f"the classifier's labels ({_shown(source)}) and the classes ({_shown(classes)}) have"
            f" {f'only {known[0]!r}' if known else 'nothing'} in common{why}: say which label counts for which class"
            " by --label_map"
        )
    return found


def read_label_map(path: str | os.PathLike[str], modalities: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Label maps by modality from a JSON or YAML file: `{"audio": {"ang": "angry", "noise": null}, "vision": ...}`.

    Args:
        path: the file.
        modalities: names that it may use.

    Returns:
        For every modality in the file, what `map_labels` takes as `given`.

    Raises:
        ValueError: if the file cannot be read or has another form; the message names it and the entry.
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a label map ({error})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise ValueError(f'{path}: give {{"audio": {{source label: class}}, "vision": ...}}')
    for name in content:
        if name not in modalities:
            raise ValueError(f"{path}: {name!r} is not a modality; {_hint(str(name), modalities)}")
    return {name: _entries(path, name, value) for name, value in content.items()}


def _entries(path: Path, modality: str, entries: dict[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in entries.items():
        values = value if isinstance(value, list) else [value]
        # YAML reads yes, no, on and off as booleans: which word it was is lost.
        if isinstance(key, bool) or any(isinstance(v, bool | dict | list) for v in values):
            raise ValueError(f"{path}: {modality}: {key!r}: {value!r} is not a pair of names; put names in quotes")
        names = [None if v is None else str(v) for v in values]
        found[str(key)] = names if isinstance(value, list) else names[0]
    return found


def _given(
    source: list[str], classes: list[str], given: Mapping[str, str | list[str] | None]
) -> dict[str, str | None]:
    """Class of every source label that is given, None for those to leave out."""
    chosen: dict[str, str | None] = {}
    for key, value in given.items():
        pairs = [(label, key) for label in value] if isinstance(value, list) else [(key, value)]
        for label, name in pairs:
            if label not in source:
                raise ValueError(f"label map: {label!r} is not a label of the classifier; {_hint(label, source)}")
            if name is not None and name not in classes:
                raise ValueError(f"label map: {label!r} is given the class {name!r}; {_hint(name, classes)}")
            if label in chosen:
                raise ValueError(f"label map: {label!r} is given two classes; a label counts for one")
            chosen[label] = name
    return chosen


def _class_of(label: str, classes: list[str]) -> str | None:
    """The class that a label names, by the strictest comparison that finds one."""
    if PLACEHOLDER.fullmatch(label) and label not in classes:
        return None
    for form in (str, _plain, _standard):
        fitting = [name for name in classes if form(name) == form(label)]
        if len(fitting) > 1:
            raise ValueError(f"label {label!r} fits the classes {_shown(fitting)}: say which by --label_map")
        if fitting:
            return fitting[0]
    return None


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name).casefold().replace("'", ""))


def _plain(name: str) -> str:
    """A name without case, spaces and punctuation; a name of nothing else stays as it is."""
    return "".join(_words(name)) or name


def _standard(name: str) -> str:
    """A name by which common variants are equal."""
    words = _words(name)
    telling = [word for word in words if word not in KINDS] or words
    return " ".join(_stem(word) for word in telling) or name


def _stem(word: str) -> str:
    if word.isdecimal():
        return str(int(word))
    if word in STANDARD:
        return STANDARD[word]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        singular = word[:-3] + "y" if word.endswith("ies") else word[:-1]
        if singular in STANDARD:
            return STANDARD[singular]
        word = singular
    if len(word) > 5 and word.endswith("ing") and re.search("[aeiouy]", word[:-3]):
        word = re.sub(r"([^aeiouls])\1$", r"\1", word[:-3])  # clapping, clap; but yelling, yell
    return word.removesuffix("e") if len(word) > 3 else word  # type, typing; boxes, box


def _hint(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose among {_shown(list(names))}"


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
