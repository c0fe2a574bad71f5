"""Plan of a Kinetics-Sounds build from a local copy of Kinetics-400: its clips, their files, and missing files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from hf_mmbalance.building.csv_files import parsed, read_csv, read_text
from hf_mmbalance.building.encode import arrow_schema, class_label, file_size, value
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions, PlannedClip, check_ids
from hf_mmbalance.data.clips import SPLITS, DataError, split_name
from hf_mmbalance.data.files import walk_files


# Arandjelovic & Zisserman, Look, Listen and Learn, ICCV 2017 (34 classes). Later work uses these 31; their
# alphabetical order gives the label numbers of the published lists.
CLASSES = (
    "blowing_nose blowing_out_candles bowling chopping_wood dribbling_basketball laughing mowing_lawn "
    "playing_accordion playing_bagpipes playing_bass_guitar playing_clarinet playing_drums playing_guitar "
    "playing_harmonica playing_keyboard playing_organ playing_piano playing_saxophone playing_trombone "
    "playing_trumpet playing_violin playing_xylophone ripping_paper shoveling_snow shuffling_cards singing "
    "stomping_grapes tap_dancing tapping_guitar tapping_pen tickling"
).split()
SECONDS = 10.0  # length of a Kinetics clip
# A YouTube id has 11 characters, among them _ and -.
NAME = re.compile(r"^(?P<id>.{11})(?:_(?P<start>\d+)(?:_(?P<end>\d+))?)?$")
MEDIA_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv", ".3gp", ".m4v")
ANNOTATIONS_CARD = """
# Kinetics-Sounds: list of clips

YouTube ids, times (seconds), labels and splits of Kinetics-Sounds; no media. Build the media from your own copy of
Kinetics-400 and this list's files with
`dataset_scripts/kinetics_sounds.py build --source k400 --annotations data/*.parquet --out built`.
Kinetics annotations are CC BY 4.0 (Google). Uploaders who want an id removed can open a discussion on this page.

```python
from datasets import load_dataset
clips = load_dataset("path/of/this/folder")
```
"""
JSON_SPLITS = {"training": "train", "validation": "validation", "testing": "test"}
FEATURES: dict[str, dict[str, Any]] = {
    "youtube_id": value("string"),
    "time_start": value("float64"),
    "time_end": value("float64"),
}


@dataclass(frozen=True)
class Annotation:
    """One clip of the lists; times are in seconds of the YouTube video."""

    youtube_id: str
    start: int
    end: int
    label: str
    split: str

    @property
    def id(self) -> str:
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}"


def read_annotations(paths: Sequence[Path]) -> list[Annotation]:
    """Read lists of clips.

    A list is the three-way JSON (`labels`, `database`), one of Kinetics-400's own CSV files, or a Parquet file that
    `write_annotations` wrote.

    Raises:
        DataError: a file is missing, a name or row cannot be read, or a clip is listed twice.
    """
    out: list[Annotation] = []
    for path in paths:
        if not path.is_file():
            text = "give KS_train_val.json, Kinetics-400's CSV files, or the Parquet files of a published list"
            raise DataError(f"{path}: no such annotation file; {text}")
        out += READERS.get(path.suffix, _from_csv)(path)
    doubled = [clip for clip, count in Counter(entry.id for entry in out).items() if count > 1]
    if doubled:
        raise DataError(f"{len(doubled)} clips are listed twice in the annotations, e.g. {doubled[0]}")
    return out


def _from_json(path: Path) -> list[Annotation]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); download the file again") from None
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise DataError(f"{path}: no 'database' in it; the three-way list is {{labels, database: {{id: ...}}}}")
    out = []
    for name, entry in database.items():
        youtube, start, end = parse_name(name, str(path))
        try:
            label = entry.get("label") or entry["annotations"]["label"]
            split = JSON_SPLITS.get(entry["subset"]) or split_name(entry["subset"])
            out.append(Annotation(youtube, start, end, class_name(label), split))
        except DataError as error:
            raise DataError(f"{path}: the entry {name!r}: {error}") from None
        except (AttributeError, LookupError, TypeError) as error:
            raise DataError(f"{path}: the entry {name!r} lacks a label or a subset ({error})") from None
    return out


def _from_csv(path: Path) -> list[Annotation]:
    columns = ("label", "youtube_id", "time_start", "time_end", "split")
    return parsed(path, read_csv(path, columns, "Kinetics-400's CSV files have these columns"), _from_row)


def _from_row(row: dict[str, str]) -> Annotation:
    start, end = int(float(row["time_start"])), int(float(row["time_end"]))
    if not 0 <= start < end:
        raise DataError(f"the window from {start} s to {end} s is empty or negative")
    split = split_name({"validate": "validation"}.get(row["split"], row["split"]))
    return Annotation(row["youtube_id"], start, end, class_name(row["label"]), split)


def _from_parquet(path: Path) -> list[Annotation]:
    """Read one split of a published list; the file's name begins with that of the split."""
    try:
        split = split_name(path.name.split("-")[0])
        table = pq.read_table(path, columns=["youtube_id", "time_start", "time_end", "label"])
        names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a list of clips as the verb annotations writes it ({error})") from None
    return [
        Annotation(row["youtube_id"], int(row["time_start"]), int(row["time_end"]), names[row["label"]], split)
        for row in table.to_pylist()
    ]


READERS = {".json": _from_json, ".parquet": _from_parquet}


def class_name(label: str) -> str:
    """Return the canonical spelling of a class: `playing piano` becomes `playing_piano`."""
    return label.strip().lower().replace(" ", "_")


def class_names(classes: Sequence[str] | None) -> list[str]:
    """Return the requested classes in their canonical spelling; by default the 31.

    Raises:
        DataError: a class is named twice.
    """
    names = [class_name(name) for name in classes or CLASSES]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"the list of classes names {twice} twice")
    return names


def parse_name(name: str, where: str) -> tuple[str, int, int]:
    """Return the YouTube id, start and end of `id_start` or `id_start_end`; by default a clip lasts ten seconds.

    Raises:
        DataError: the name has a different form.
    """
    found = NAME.match(name)
    if found is None or found["start"] is None:
        raise DataError(f"{where}: {name!r} is neither <youtube id>_<start> nor <youtube id>_<start>_<end>")
    start = int(found["start"])
    return found["id"], start, int(found["end"]) if found["end"] else start + int(SECONDS)


def read_two_way(train: Path, test: Path, known: set[str]) -> dict[str, str]:
    """Read every clip's split from the two-way lists (`id,frames,label` per line).

    Raises:
        DataError: a list names clips that are not in the annotations.
    """
    by_start = {clip[:-7]: clip for clip in known}
    out: dict[str, str] = {}
    for split, path in (("train", train), ("test", test)):
        text = read_text(path, "it is a list of the two-way split, id,frames,label per line")
        lines = [line.split(",")[0] for line in text.splitlines() if line.strip()]
        parsed = [parse_name(name, str(path)) for name in lines]
        keys = [f"{youtube}_{start:06d}" for youtube, start, _ in parsed]
        check_ids("the annotations", keys, set(by_start), str(path))
        check_ids("the annotations", [*(clip[:-7] for clip in out), *keys], set(by_start), f"{train} and {test}")
        out |= {by_start[key]: split for key in keys}
    return out


def find_media(source: Path) -> dict[str, list[tuple[Path, int | None, int | None]]]:
    """Find the files of every YouTube id, with the times in their names, in any layout (by class, flat, by split).

    Raises:
        DataError: the folder is missing or holds no videos.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; --source is a local copy of Kinetics-400")
    found: dict[str, list[tuple[Path, int | None, int | None]]] = {}
    for path in walk_files(source):
        name = NAME.match(path.stem) if path.suffix.lower() in MEDIA_SUFFIXES else None
        if name is not None:
            start = int(name["start"]) if name["start"] else None
            found.setdefault(name["id"], []).append((path, start, int(name["end"]) if name["end"] else None))
    if not found:
        raise DataError(f"{source}: no videos named <youtube id>[_<start>[_<end>]] in it, e.g. {CLASSES[0]}/*.mp4")
    return found


def plan_kinetics_sounds(
    source: Path,
    encode: EncodeOptions,
    *,
    annotations: Sequence[Path],
    two_way: tuple[Path, Path] | None = None,
    classes: Sequence[str] | None = None,
    trimmed: str = "auto",
    clips_per_shard: int = 128,
    max_lost: float = 0.35,
) -> BuildPlan:
    """Plan the build of Kinetics-Sounds.

    Args:
        source: folder of videos.
        encode: how clips are stored.
        annotations: lists of clips (see `read_annotations`).
        two_way: train and test list of the two-way split, which becomes the configuration `two_way`.
        classes: your own list of classes; by default the 31.
        trimmed: `yes` (files hold just the clip), `no` (the complete video), `auto` (decided by name and length).
        clips_per_shard: clips per shard.
        max_lost: largest fraction of clips that can be lost.

    Returns:
        The plan; it includes clips without a file, as missing.

    Raises:
        DataError: lists cannot be read, a class has no clips, or there are no videos at all.
    """
    if trimmed not in ("auto", "yes", "no"):
        raise DataError(f"trimmed must be auto, yes or no, got {trimmed!r}")
    names, listed = _listed(annotations, classes)
    wanted = [entry for entry in listed if entry.label in names]
    two = read_two_way(*two_way, {entry.id for entry in listed}) if two_way else {}
    media = find_media(source)
    clips = []
    for entry in wanted:
        cell = entry.split + (f"-two_way_{two.get(entry.id, 'none')}" if two_way else "")
        clips.append(_clip(entry, cell, names.index(entry.label), media, trimmed))
    return BuildPlan(
        name="kinetics_sounds",
        clips=clips,
        classes=names,
        label_column="label",
        group_column="youtube_id",
        features=FEATURES,
        configs=_configs({clip.cell for clip in clips}, bool(two_way)),
        encode=encode,
        clips_per_shard=clips_per_shard,
        max_lost=max_lost,
    )


def _listed(annotations: Sequence[Path], classes: Sequence[str] | None) -> tuple[list[str], list[Annotation]]:
    """Return the requested classes, and all clips of the lists in order of their ids.

    Raises:
        DataError: lists cannot be read, a class has no clips, or a three-way or published list has other classes and
            no classes are requested.
    """
    names = class_names(classes)
    listed = sorted(read_annotations(annotations), key=lambda entry: entry.id)
    found = {entry.label for entry in listed}
    empty = sorted(set(names) - found)
    if empty:
        raise DataError(f"the annotations have no clip of {', '.join(empty)}; check the class list's spelling")
    strange = sorted(found - set(names))
    if strange and not classes and any(path.suffix in READERS for path in annotations):
        raise DataError(f"the list has classes that are not Kinetics-Sounds': {', '.join(strange)}; give --classes")
    return names, listed


def _configs(cells: set[str], two_way: bool) -> dict[str, dict[str, list[str]]]:
    three = {split: sorted(cell for cell in cells if cell.split("-")[0] == split) for split in SPLITS}
    configs = {"three_way": {split: part for split, part in three.items() if part}}
    if two_way:
        configs["two_way"] = {
            split: sorted(cell for cell in cells if cell.endswith(f"-two_way_{split}")) for split in ("train", "test")
        }
    return configs


def _clip(
    entry: Annotation,
    cell: str,
    label: int,
    media: dict[str, list[tuple[Path, int | None, int | None]]],
    trimmed: str,
) -> PlannedClip:
    columns = _columns(entry)
    files = media.get(entry.youtube_id, [])
    path, named = _choose(entry, files)
    if path is None:
        others = f" (but {files[0][0].name}, with different times)" if files else ""
        text = f"{entry.id}: no file of YouTube video {entry.youtube_id} with these times in the source{others}"
        return PlannedClip(entry.id, None, cell, label, columns, problem=("missing", text))
    cut = trimmed == "yes" or (trimmed == "auto" and named)
    return PlannedClip(
        id=entry.id,
        source=str(path),
        cell=cell,
        label=label,
        columns=columns,
        size=file_size(path),
        window=None if cut else (float(entry.start), float(entry.end)),
        window_if_longer=trimmed == "auto",
    )


def _columns(entry: Annotation) -> dict[str, Any]:
    # Not `start` and `end`: the pipeline would use them as a span of the clip, but these times are of the full video.
    return {"youtube_id": entry.youtube_id, "time_start": float(entry.start), "time_end": float(entry.end)}


def _choose(entry: Annotation, files: list[tuple[Path, int | None, int | None]]) -> tuple[Path | None, bool]:
    """Return the file of a clip, and True if its name says that it is cut to the clip."""
    for path, start, end in files:
        if start == entry.start and end in (None, entry.end):
            return path, True
    for path, start, _ in files:
        if start is None:
            return path, False
    return None, False


def write_annotations(annotations: Sequence[Path], classes: Sequence[str] | None, out: Path) -> int:
    """Write a list that can be published: id, YouTube id, times and label; one Parquet file per split, and a README.

    Args:
        annotations: lists of clips (see `read_annotations`).
        classes: your own list of classes; by default the 31.
        out: a new or empty folder.

    Returns:
        Number of clips.

    Raises:
        DataError: lists cannot be read, a class has no clips, or the folder is not empty.
    """
    names, listed = _listed(annotations, classes)
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty; give a new folder")
    features = {"id": value("string"), **FEATURES, "label": class_label(names)}
    schema, total, files = arrow_schema(features), 0, []
    (out / "data").mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        rows = [
            _columns(entry) | {"id": entry.id, "label": names.index(entry.label)}
            for entry in listed
            if entry.split == split and entry.label in names
        ]
        if rows:
            path = f"data/{split}-00000-of-00001.parquet"
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / path)
            files.append({"split": split, "path": path})
            total += len(rows)
    head: dict[str, Any] = {"pretty_name": "Kinetics-Sounds (list of clips)", "license": "cc-by-4.0"}
    head |= {"configs": [{"config_name": "default", "data_files": files, "default": True}]}
    text = "---\n" + yaml.safe_dump(head, sort_keys=False) + "---\n" + ANNOTATIONS_CARD
    (out / "README.md").write_text(text, encoding="utf-8")
    return total
