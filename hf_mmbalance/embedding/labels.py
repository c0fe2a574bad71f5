"""Map the labels of a classifier to classes: by name, spelling and common variants, or as the user says."""

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


#: Names that transformers makes up if a model has none.
PLACEHOLDER = re.compile(r"label_?\d+", re.IGNORECASE)
#: Words that only say what kind of thing a name is; they are ignored when names are compared.
KINDS = frozenset(("digit", "number", "letter", "emotion"))
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
).split()
#: Spellings with the same meaning; all are replaced by the first before names are compared.
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
    """The source labels (labels of a classifier) that are mapped to each class.

    Args:
        classes: every class, in order -> its source labels; empty if the classifier does not know the class.
        dropped: source labels that are mapped to no class.
    """

    classes: dict[str, list[str]]
    dropped: list[str]

    @property
    def unknown(self) -> list[str]:
        """Classes that no source label is mapped to."""
        return [name for name, labels in self.classes.items() if not labels]

    def describe(self) -> str:
        """Describe what was mapped, what was dropped and which classes are unknown, one line each."""
        lines = [f"{name} <- {' + '.join(labels)}" for name, labels in self.classes.items() if labels]
        if self.dropped:
            lines.append(f"left out, because no class has such a name: {_shown(self.dropped)}")
        if self.unknown:
            lines.append(
                f"classes that this classifier does not know and gives no evidence for: {_shown(self.unknown)}"
            )
        return "\n".join(lines)


def map_labels(
    source: Sequence[str], classes: Sequence[str], given: Mapping[str, str | list[str] | None] | None = None
) -> LabelMap:
    """Map a classifier's labels to classes by name.

    A label is mapped to the class with the same name. Failing that, case, spaces and punctuation are ignored; failing
    that, common variants match too: plural, -ing, number words, and spellings of emotions (ANG, anger, angry).

    Args:
        source: names of the classifier's labels; labels with the same name are mapped to the same class.
        classes: names of the classes.
        given: mappings that the names do not reveal; they take precedence. Either a source label -> its class (None
            drops the label), or a class -> the list of its source labels.

    Raises:
        ValueError: if `given` contains a label or class that does not exist or one label twice, a label fits two
            classes, or fewer than two classes have a label.
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
        why = "" if named else "; these are not names but numbers that the model's author did not replace"
        raise ValueError(
            f"the classifier's labels ({_shown(source)}) and the classes ({_shown(classes)}) have"
            f" {f'only {known[0]!r}' if known else 'nothing'} in common{why}: map the labels to the classes with"
            " --label_map"
        )
    return found


def read_label_map(path: str | os.PathLike[str], modalities: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read label maps from a JSON or YAML file: `{"audio": {"ang": "angry", "noise": null}, "vision": ...}`.

    Args:
        path: path of the file.
        modalities: modalities that the file can name.

    Returns:
        For every modality in the file, the mapping that `map_labels` accepts as `given`.

    Raises:
        ValueError: if the file cannot be read or has a different form; the message names the file and the entry.
    """
    import yaml

    from hf_mmbalance.yaml_files import load_yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else load_yaml(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a label map ({error})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise ValueError(f'{path}: must have the form {{"audio": {{source label: class}}, "vision": ...}}')
    for name in content:
        if name not in modalities:
            raise ValueError(f"{path}: {name!r} is not a modality; {_hint(str(name), modalities)}")
    return {name: _entries(path, name, value) for name, value in content.items()}


def _entries(path: Path, modality: str, entries: dict[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in entries.items():
        values = value if isinstance(value, list) else [value]
        # YAML parses yes, no, on and off as booleans, so the original word is lost.
        if isinstance(key, bool) or any(isinstance(v, bool | dict | list) for v in values):
            raise ValueError(f"{path}: {modality}: {key!r}: {value!r} is not a pair of names; put names in quotes")
        names = [None if v is None else str(v) for v in values]
        found[str(key)] = names if isinstance(value, list) else names[0]
    return found


def _given(
    source: list[str], classes: list[str], given: Mapping[str, str | list[str] | None]
) -> dict[str, str | None]:
    """Return the class of every source label that is given, None for labels to drop."""
    chosen: dict[str, str | None] = {}
    for key, value in given.items():
        pairs = [(label, key) for label in value] if isinstance(value, list) else [(key, value)]
        for label, name in pairs:
            if label not in source:
                raise ValueError(f"label map: {label!r} is not a label of the classifier; {_hint(label, source)}")
            if name is not None and name not in classes:
                raise ValueError(f"label map: {label!r} is given the class {name!r}; {_hint(name, classes)}")
            if label in chosen:
                raise ValueError(f"label map: {label!r} is given two classes; give it only one")
            chosen[label] = name
    return chosen


def _class_of(label: str, classes: list[str]) -> str | None:
    """Return the class that a label names, by the strictest comparison that finds one."""
    if PLACEHOLDER.fullmatch(label) and label not in classes:
        return None
    for form in (str, _plain, _standard):
        fitting = [name for name in classes if form(name) == form(label)]
        if len(fitting) > 1:
            raise ValueError(f"label {label!r} fits the classes {_shown(fitting)}: choose one with --label_map")
        if fitting:
            return fitting[0]
    return None


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name).casefold().replace("'", ""))


def _plain(name: str) -> str:
    """Remove case, spaces and punctuation from a name; a name that has nothing else stays unchanged."""
    return "".join(_words(name)) or name


def _standard(name: str) -> str:
    """Normalise a name so that its common variants become equal."""
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
