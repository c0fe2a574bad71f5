"""Results of a build: manifest of all clips, counts, `build_report.json`, and `configs:` for `datasets`."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_mmbalance.building.card import fill_card
from hf_mmbalance.building.engine import STATE, BuildError, file_sha256, is_done, read_record
from hf_mmbalance.building.plan import STATUSES, BuildPlan
from hf_mmbalance.data.clips import SPLITS
from hf_mmbalance.json_files import write_json


REPORT = "build_report.json"
MANIFEST = "manifest.csv"


def finish(plan: BuildPlan, out: Path, run: dict[str, Any], card: str) -> dict[str, Any]:
    """Check that every shard of the plan exists once, then write manifest, report and README.

    Args:
        plan: plan that was built.
        out: folder of the build.
        run: output of `engine.build`, or {} after a merge.
        card: template of the README (see `card.fill_card`).

    Returns:
        The report.

    Raises:
        BuildError: shards are missing or occur twice, or more clips were lost than the plan allows.
    """
    records = collect(plan, out)
    for draft in (out / STATE / "drafts").iterdir():
        draft.unlink()  # left by interrupted runs: all shards are complete, so no process is still writing
    clips = {entry["id"]: entry for record in records for entry in record["clips"]}
    report = _report(plan, records, clips, run)
    _write_manifest(plan, out, clips)
    lost = 1 - report["clips"]["built"] / report["clips"]["planned"]
    if lost > plan.max_lost:
        text = f"{lost:.1%} of the clips could not be built, more than --max_lost {plan.max_lost:g}"
        raise BuildError(f"{text}: {counts_of(report)}; see {out / MANIFEST}; raise --max_lost to accept this")
    if not report["clips"]["built"]:
        raise BuildError(f"none of the clips could be built: {counts_of(report)}; see {out / MANIFEST}")
    (out / "README.md").write_text(fill_card(card, plan, report, configs_of(plan, report)), encoding="utf-8")
    write_json(out / REPORT, report)  # written last: its presence means that the build is finished
    return report


def counts_of(report: dict[str, Any]) -> str:
    """Return the number of clips by status as text, e.g. `45 ok, 12 missing`."""
    return ", ".join(f"{count} {status}" for status, count in report["status"].items())


def collect(plan: BuildPlan, out: Path) -> list[dict[str, Any]]:
    """Read the records of all shards and check them against the plan.

    Raises:
        BuildError: something is missing, occurs twice or does not belong to this plan; the message names it.
    """
    shards = plan.shards()
    missing = [shard.name for shard in shards if not is_done(out, shard.name)]
    if missing:
        text = f"{len(missing)} of {len(shards)} shards are not built yet, e.g. {missing[0]}"
        raise BuildError(f"{text}; run the other parts (--shard i/n), or the same command again")
    strange = {path.stem for path in (out / "data").glob("*.parquet")} - {shard.name for shard in shards}
    if strange:
        raise BuildError(
            f"{out / 'data'}: {len(strange)} files are not of this build, e.g. {sorted(strange)[0]}.parquet"
        )
    records = []
    for shard in shards:
        record = read_record(out, shard.name)
        assert record is not None  # checked by is_done above
        if [entry["id"] for entry in record["clips"]] != [clip.id for clip in shard.clips]:
            raise BuildError(f"shard {shard.name} holds different clips from the plan; remove it and build again")
        records.append(record)
    repeated = [clip for clip, n in Counter(e["id"] for r in records for e in r["clips"]).items() if n > 1]
    if repeated:
        raise BuildError(f"{len(repeated)} clips are in two shards, e.g. {repeated[0]}")
    return records


def _report(plan: BuildPlan, records: list[dict], clips: dict[str, dict], run: dict[str, Any]) -> dict[str, Any]:
    status = Counter(entry["status"] for entry in clips.values())
    built = status["ok"]
    return {
        "name": plan.name,
        "fingerprint": plan.fingerprint(),
        "encode": asdict(plan.encode),
        "reading": plan.encode.reading().to_dict(),
        "classes": plan.classes,
        "label_column": plan.label_column,
        "group_column": plan.group_column,
        "shared_groups_allowed": list(plan.shared_groups_allowed),
        "clips": {"planned": len(plan.clips), "built": built},
        "status": {name: status[name] for name in STATUSES if status[name]},
        "splits": {config: _split_counts(plan, config, clips) for config in plan.configs},
        "noted": {
            entry["id"]: entry["detail"] for entry in clips.values() if entry["status"] == "ok" and entry["detail"]
        },
        "left_out": {e["id"]: f"{e['status']}: {e['detail']}" for e in clips.values() if e["status"] != "ok"},
        "shards": [
            {"file": f"data/{r['name']}.parquet", "rows": r["rows"], "bytes": r["bytes"], "sha256": r["sha256"]}
            for r in records
            if r["rows"]
        ],
        "notes": plan.notes,
        "run": {key: round(number, 3) for key, number in run.items()},
        "software": {"python": platform.python_version()}
        | {p: version(p) for p in ("av", "pyarrow", "soundfile", "pillow")},
    }


def _split_counts(plan: BuildPlan, config: str, clips: dict[str, dict]) -> dict[str, Any]:
    out = {}
    for split, planned in plan.splits(config).items():
        ok = [clip for clip in planned if clips[clip.id]["status"] == "ok"]
        counts = Counter(clip.label for clip in ok)
        before = Counter(clip.label for clip in planned)
        out[split] = {
            "planned": len(planned),
            "built": len(ok),
            "groups": len({clip.columns[plan.group_column] for clip in ok}),
            "classes": {name: counts[i] for i, name in enumerate(plan.classes)},
            "planned_classes": {name: before[i] for i, name in enumerate(plan.classes)},
        }
    return out


def _write_manifest(plan: BuildPlan, out: Path, clips: dict[str, dict]) -> None:
    text = io.StringIO()
    columns = ["id", "cell", "label", "status", "duration", "detail", "source"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for name in sorted(clips):
        writer.writerow(clips[name] | {"label": plan.classes[clips[name]["label"]]})
    (out / MANIFEST).write_text(text.getvalue(), encoding="utf-8")


def configs_of(plan: BuildPlan, report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the `configs:` of the README: all configurations point to the same shards, without empty splits."""
    built = [shard["file"] for shard in report["shards"]]
    configs: list[dict[str, Any]] = []
    for config, splits in plan.configs.items():
        files = []
        for split in SPLITS:
            cells = splits.get(split, [])
            paths = [f"data/{cell}-*.parquet" for cell in cells if any(f.startswith(f"data/{cell}-") for f in built)]
            if paths:
                files.append({"split": split, "path": paths})
        if files:
            configs.append({"config_name": config, "data_files": files})
    if configs:
        configs[0]["default"] = True
    return configs


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report of a built folder.

    Raises:
        BuildError: the folder has no report, or the report is not JSON.
    """
    path = folder / REPORT
    if not path.exists():
        state = " (the build is not finished)" if (folder / STATE).exists() else ""
        raise BuildError(f"{folder}: no {REPORT}{state}; build the dataset first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BuildError(f"{path}: not JSON ({error}); build the dataset again") from None


def shard_is_intact(folder: Path, shard: dict[str, Any]) -> bool:
    """Return True if a shard's file has the bytes that were built."""
    path = folder / shard["file"]
    return path.exists() and file_sha256(path) == shard["sha256"]
