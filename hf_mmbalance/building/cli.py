"""Verbs and flags that all scripts in dataset_scripts/ share."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_mmbalance import console
from hf_mmbalance.building.engine import RESUME, STATE, BuildError, build, is_done
from hf_mmbalance.building.plan import BuildPlan, EncodeOptions
from hf_mmbalance.building.report import counts_of, finish, read_report
from hf_mmbalance.building.sheet import contact_sheet
from hf_mmbalance.building.validate import validate
from hf_mmbalance.data.clips import DataError


Planner = Callable[[argparse.Namespace, EncodeOptions], BuildPlan]
Say = Callable[[str], None]


class DatasetScript:
    """Command line with the verbs `build`, `merge` and `validate`, to which a script can add its own.

    Args:
        name: name of the dataset, e.g. `crema_d`.
        doc: docstring of the script, shown by `--help`.
        planner: function that makes the plan from the flags of `build`.
        card: Markdown template of the README; its `{{ name }}` marks are filled from the report.
        max_lost: default of `--max_lost`.
    """

    def __init__(self, name: str, doc: str, planner: Planner, card: Path, max_lost: float):
        self.name, self.planner, self.card = name, planner, card
        self.parser = console.Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.verbs = self.parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        self.build_flags = self.verb("build", "turn raw media into validated Parquet", self._build)
        _add_build_flags(self.build_flags, max_lost)
        merge = self.verb("merge", "join the parts of a build made with --shard, and check them", self._merge)
        merge.add_argument("parts", nargs="*", type=Path, help="folders of the parts (default: all are in --out)")
        merge.add_argument("--out", type=Path, required=True, help="folder of the complete build")
        text = "stop if a larger fraction of clips is lost (default: as in the build)"
        merge.add_argument("--max_lost", type=console.fraction, help=text)
        check = self.verb("validate", "check a built folder: files, ids, labels, groups, every clip", self._validate)
        check.add_argument("folder", type=Path, help="a built folder")

    def verb(
        self, name: str, text: str, run: Callable[[argparse.Namespace, Say], dict[str, Any]]
    ) -> argparse.ArgumentParser:
        """Add a verb. `run` gets the flags and a function that prints a line, and returns the result for `--json`."""

        def command(args: argparse.Namespace) -> int:
            console.check_place(args.json)  # fail before the long work, not after it
            result = run(args, lambda line: console.say(line, aside=not console.shows_text(args)))
            console.write_result(args.json, result)
            return console.PROBLEMS if result.get("problems") else console.DONE

        parser = console.add_verb(self.verbs, name, text, command)
        console.add_json_option(parser)
        return parser

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a verb and return the exit status (`console` lists them)."""
        args = self.parser.parse_args(argv)
        name = f"{self.name} {args.verb}"
        return console.run_command(lambda: int(args.func(args)), name, resume=RESUME if args.verb == "build" else "")

    def _build(self, args: argparse.Namespace, say: Say) -> dict[str, Any]:
        card = self.card.read_text(encoding="utf-8")  # before the long work, as a build cannot finish without it
        plan = self.planner(args, encode_options(args))
        for note in plan.notes:
            say(f"note: {note}")
        run = build(plan, args.out, num_proc=args.num_proc, part=args.shard, overwrite=args.overwrite)
        say(f"{run['clips']} clips in {run['seconds']:.1f} s")
        if args.shard != (0, 1):
            say(f"part {args.shard[0]} of {args.shard[1]} is built; when all parts are, join them with `merge`")
            return {"part": list(args.shard), **run}
        return self._finish(plan, args.out, run, card, say)

    def _finish(self, plan: BuildPlan, out: Path, run: dict[str, Any], card: str, say: Say) -> dict[str, Any]:
        report = finish(plan, out, run, card)
        sheet = contact_sheet(out, report["shards"], plan.classes, plan.label_column)
        say(f"{report['clips']['built']} of {report['clips']['planned']} clips built: {counts_of(report)}")
        rarest = sorted(report["left_out"].items(), key=lambda clip: report["status"][clip[1].partition(":")[0]])
        for name, reason in rarest[:10]:  # rare reasons first: many missing clips must not hide a damaged one
            say(f"  left out: {name} ({reason})")
        if len(report["left_out"]) > 10:
            say(f"  ... and {len(report['left_out']) - 10} more, all in {out / 'manifest.csv'}")
        for split, counts in report["splits"][next(iter(plan.configs))].items():
            say(f"  {split:<12} {counts['built']:>6} of {counts['planned']:>6} clips, {counts['groups']} groups")
        say(f"report, manifest and {sheet.name} are in {out}")
        return report

    def _merge(self, args: argparse.Namespace, say: Say) -> dict[str, Any]:
        plan = join_parts(args.parts, args.out)
        plan.max_lost = plan.max_lost if args.max_lost is None else args.max_lost
        return self._finish(plan, args.out, {}, self.card.read_text(encoding="utf-8"), say)

    def _validate(self, args: argparse.Namespace, say: Say) -> dict[str, Any]:
        problems = validate(args.folder)
        for problem in problems:
            say(f"problem: {problem}")
        say(f"{args.folder}: {len(problems) or 'no'} problems")
        return {"problems": problems, "clips": read_report(args.folder)["clips"]}


def _add_build_flags(parser: argparse.ArgumentParser, max_lost: float) -> None:
    add, count = parser.add_argument, console.positive
    add("--source", type=Path, required=True, help="folder of the raw media")
    add("--out", type=Path, required=True, help="folder to build into; the same command resumes a killed build")
    add("--num_proc", type=count, default=max(os.cpu_count() or 1, 1), help="worker processes (default: one per CPU)")
    add(
        "--shard",
        type=console.shard,
        default=(0, 1),
        metavar="I/N",
        help="build part I of N, e.g. on N machines; then merge the parts",
    )
    add("--frames", type=count, default=8, help="frames per clip (default 8)")
    add("--fps", type=float, help="frames per second, instead of --frames")
    add("--frame_size", type=count, nargs="+", help="shorter side in pixels, or height and width (default: unchanged)")
    add("--crop", type=float, nargs=4, metavar=("L", "T", "R", "B"), help="box to keep, as fractions of the frame")
    add("--image_format", choices=("jpeg", "png"), default="jpeg", help="format of frames; png is lossless")
    add("--quality", type=int, default=90, help="JPEG quality (default 90)")
    add("--sampling_rate", type=count, default=16_000, help="sampling rate of the audio in Hz (default 16000)")
    add("--max_seconds", type=console.seconds, default=600.0, help="longer clips are left out as too_long")
    add("--min_seconds", type=float, default=0.1, help="shorter clips are left out as too_short")
    text = f"stop if a larger fraction of clips is lost, from 0 to 1 (default {max_lost:g})"
    add("--max_lost", type=console.fraction, default=max_lost, help=text)
    add("--clips_per_shard", type=count, default=128, help="clips per Parquet file (default 128)")
    add("--overwrite", action="store_true", help="start again: first remove the build in --out")


def encode_options(args: argparse.Namespace) -> EncodeOptions:
    """Return how clips are stored, according to the flags."""
    size: Any = args.frame_size
    if size is not None:
        if len(size) > 2:
            raise DataError(f"--frame_size needs one or two numbers, got {len(size)}")
        size = size[0] if len(size) == 1 else (size[0], size[1])
    return EncodeOptions(
        sampling_rate=args.sampling_rate,
        frames=args.frames,
        fps=args.fps,
        frame_size=size,
        crop=tuple(args.crop) if args.crop else None,
        image_format=args.image_format,
        quality=args.quality,
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
    )


def join_parts(parts: list[Path], out: Path) -> BuildPlan:
    """Combine the shards of several folders in one; without parts, `out` already holds all shards.

    Returns:
        The plan that all parts follow.

    Raises:
        BuildError: a part follows a different plan, a shard is in two parts or in none, or `out` holds something
            else. In these cases nothing is written.
    """
    folders = parts or [out]
    plans = [_saved_plan(folder) for folder in folders]
    for folder, content in zip(folders, plans, strict=True):
        if not content:
            raise BuildError(f"{folder} holds no part of a build")
        if content["fingerprint"] != plans[0]["fingerprint"]:
            raise BuildError(f"{folder} follows a different plan from {folders[0]} (other clips, files or options)")
    plan = BuildPlan.from_json(plans[0]["plan"])
    if parts:
        places = _places_of_shards(plan, parts)
        if out.exists() and any(out.iterdir()) and _saved_plan(out).get("fingerprint") != plans[0]["fingerprint"]:
            raise BuildError(f"{out} is not empty; give a new folder for the complete build")
        _combine(places, out)
    return plan


def _saved_plan(folder: Path) -> dict[str, Any]:
    mark = folder / STATE / "plan.json"
    return json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else {}


def _places_of_shards(plan: BuildPlan, parts: list[Path]) -> dict[str, Path]:
    """Map each shard to the part that holds it."""
    places: dict[str, Path] = {}
    names = [shard.name for shard in plan.shards()]
    for part in parts:
        for name in names:
            if is_done(part, name):
                if name in places:
                    raise BuildError(f"shard {name} is in two parts; build each part with its own --shard I/N")
                places[name] = part
    missing = [name for name in names if name not in places]
    if missing:
        text = f"{len(missing)} of {len(names)} shards are not built yet, e.g. {missing[0]}"
        raise BuildError(f"{text}; build all parts (--shard I/N), then list all of them")
    return places


def _combine(places: dict[str, Path], out: Path) -> None:
    for folder in (out / STATE / "drafts", out / STATE / "shards", out / "data"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, part in places.items():
        if part.resolve() == out.resolve():
            continue
        shutil.copy(part / STATE / "plan.json", out / STATE / "plan.json")
        data = part / "data" / f"{name}.parquet"
        if data.exists():
            (out / "data" / data.name).unlink(missing_ok=True)
            try:
                os.link(data, out / "data" / data.name)
            except OSError:  # e.g. on a different disk
                shutil.copy(data, out / "data" / data.name)
        shutil.copy(part / STATE / "shards" / f"{name}.json", out / STATE / "shards" / f"{name}.json")
