"""Check a built folder independently of the build: files, ids, labels, groups, and whether every clip decodes."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import soundfile
import yaml
from PIL import Image

from hf_mmbalance.building.report import read_report, shard_is_intact


def validate(folder: Path) -> list[str]:
    """Return all problems of a built folder, or an empty list if there are none.

    Args:
        folder: built folder with README.md, build_report.json and data/.

    Raises:
        BuildError: the folder is not a finished build.
    """
    report = read_report(folder)
    problems = [
        f"{shard['file']}: missing, or different from the file that was built"
        for shard in report["shards"]
        if not shard_is_intact(folder, shard)
    ]
    listed = {shard["file"] for shard in report["shards"]}
    problems += [
        f"data/{path.name}: not in the report"
        for path in sorted((folder / "data").glob("*"))
        if f"data/{path.name}" not in listed
    ]
    if problems:
        return problems
    rows: dict[str, list[dict[str, Any]]] = {}
    for shard in report["shards"]:
        rows[shard["file"]] = _check_rows(folder / shard["file"], report, problems)
    ids = Counter(row["id"] for part in rows.values() for row in part)
    problems += [f"clip {clip} occurs {count} times" for clip, count in ids.items() if count > 1]
    if len(ids) != report["clips"]["built"]:
        problems.append(f"{len(ids)} clips, but the report says {report['clips']['built']}")
    return problems + _check_configs(folder, report, rows)


def _check_rows(path: Path, report: dict[str, Any], problems: list[str]) -> list[dict[str, Any]]:
    label, group, kept = report["label_column"], report["group_column"], []
    file = pq.ParquetFile(path)
    for number in range(file.num_row_groups):
        for row in file.read_row_group(number).to_pylist():
            kept.append({"id": row["id"], "label": row[label], "group": row[group]})
            if not 0 <= row[label] < len(report["classes"]):
                problems.append(f"{row['id']}: label {row[label]} is outside the {len(report['classes'])} classes")
            problems += _check_media(row, report["encode"]["sampling_rate"])
    return kept


def _check_media(row: dict[str, Any], rate: int) -> list[str]:
    problems = []
    try:
        if row["audio"] is not None:
            wave, found = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16", always_2d=True)
            if found != rate or wave.shape[1] != 1 or len(wave) == 0:
                problems.append(
                    f"{row['id']}: the audio is {len(wave)} samples, {wave.shape[1]} channels at {found} Hz"
                )
        for image in row["frames"] or ():
            with Image.open(io.BytesIO(image["bytes"])) as picture:
                picture.load()
        times = row["frame_times"]
        if times is not None and (len(times) != len(row["frames"]) or times != sorted(times)):
            problems.append(f"{row['id']}: its frame times do not match its frames")
    except (OSError, soundfile.SoundFileError) as error:
        problems.append(f"{row['id']}: stored media does not decode ({error})")
    return problems


def _check_configs(folder: Path, report: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    try:
        configs = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])["configs"]
        named = {(c["config_name"], part["split"]): part["path"] for c in configs for part in c["data_files"]}
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        return [f"README.md: its head does not say which files are in which split ({type(error).__name__}: {error})"]
    problems = []
    for name, splits in report["splits"].items():
        groups: dict[str, set[str]] = {}
        for split, counts in splits.items():
            patterns = named.pop((name, split), [])
            files = {path for path in rows if any(Path(path).match(pattern) for pattern in patterns)}
            held = [row for path in files for row in rows[path]]
            if len(held) != counts["built"]:
                problems.append(f"{name}/{split}: {len(held)} clips, but the report says {counts['built']}")
            groups[split] = {row["group"] for row in held}
        if name not in report["shared_groups_allowed"]:
            for first, second in ((a, b) for a in groups for b in groups if a < b):
                shared = groups[first] & groups[second]
                if shared:
                    problems.append(f"{name}: {len(shared)} groups are in both {first} and {second}")
    return problems + [f"{name}/{split}: in the head of README.md, but not in the report" for name, split in named]
