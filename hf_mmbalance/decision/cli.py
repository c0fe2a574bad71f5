"""`mmbalance decide` and `mmbalance diagnose`."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_mmbalance import console
from hf_mmbalance.decision.plain import clips_and_draws, plain_report
from hf_mmbalance.decision.report_text import summary
from hf_mmbalance.decision.table import DecisionTable, TableError
from hf_mmbalance.decision.table_files import table_name, table_path


DECIDE = """Fit every form of the decision layer, and compare them: on held-out clips of a table of logits.

The forms are the rungs of a ladder, from nothing fitted to many parameters: sum, prior_sum, temperature, typicality,
global, bias, vector, class, dirichlet. Cross-validation chooses one, marked * in the table; the row `adaptive` is the
chosen layer. Accuracy is in percent.

example:
  mmbalance decide decisions.parquet                                   (fit on calibration, evaluate on test)
  mmbalance decide outputs/run_a outputs/run_b                         (one after the other; see also: compare)
  mmbalance decide votes.parquet --group_folds 5 --seed 0 --json -     (pooled out-of-fold predictions)
"""
DIAGNOSE = """Show which modality a decision layer relies on: why, and what that costs.

Lean: how much more a modality counts than its share of what the modalities can do by themselves. Lost: of the clips
that at least one modality gets right, the fraction that the decision gets wrong. The page written by --report
explains all terms.

example:
  mmbalance diagnose decisions.parquet --report report.html --json diagnosis.json
  mmbalance diagnose outputs/run_a outputs/run_b --report compare.html  (run folders, side by side)
"""


def add_decide(verbs: Any) -> None:
    """Add the verb `decide`."""
    parser = console.add_verb(verbs, "decide", DECIDE, run_decide)
    parser.add_argument("tables", type=Path, nargs="+", metavar="TABLE|RUN", help="one or more decision tables"
                        " (.parquet, .npz, .csv) or run folders")  # fmt: skip
    _fit_options(parser)
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="save the fitted allocation (allocation.npz);"
                        " with several tables, each in a subfolder named after its table")  # fmt: skip


def add_diagnose(verbs: Any) -> None:
    """Add the verb `diagnose`."""
    parser = console.add_verb(verbs, "diagnose", DIAGNOSE, run_diagnose)
    parser.add_argument("tables", type=Path, nargs="+", metavar="TABLE|RUN", help="tables or run folders; the report"
                        " shows the first in full and the rest in the comparison")  # fmt: skip
    _fit_options(parser)
    parser.add_argument("--report", type=Path, metavar="HTML", help="write an HTML page; figures as PNG, SVG and PDF"
                        " go into a folder next to it")  # fmt: skip
    parser.add_argument("--draws", type=console.positive, default=1000, help="bootstrap draws (default: %(default)s)")


def run_decide(arguments: argparse.Namespace) -> int:
    """Run `decide` and return the exit status."""
    console.check_place(arguments.json)
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
    names, several = _names(arguments.tables), len(arguments.tables) > 1
    reports: dict[str, Any] = {}
    with console.progress(len(names), "fitting", "table") as step:
        for name, path in zip(names, arguments.tables, strict=True):
            judged = _decide(path, arguments)
            reports[name] = plain_report(judged.as_dict())
            if console.shows_text(arguments):
                if several:
                    console.say(f"== {name}")
                print_ladder(reports[name])
            if arguments.save:
                folder = arguments.save / _as_folder(name) if several else arguments.save
                console.say(f"saved {judged.allocation.save(folder)}", aside=True)
            step()
    console.write_result(arguments.json, reports if several else reports[names[0]])
    return console.DONE


def run_diagnose(arguments: argparse.Namespace) -> int:
    """Run `diagnose` and return the exit status."""
    from hf_mmbalance.decision.diagnosis import diagnose

    for place in (arguments.json, arguments.report):
        console.check_place(place)
    reports, names = [], _names(arguments.tables)
    with console.progress(len(names), "diagnosing", "table") as step:
        for path in arguments.tables:
            judged = _decide(path, arguments)
            reports.append(diagnose(judged, draws=arguments.draws, seed=arguments.seed))
            step()
    if console.shows_text(arguments):
        for name, report in zip(names, reports, strict=True):
            print_diagnosis(name, report)
    if arguments.report:
        from hf_mmbalance.decision.report import write_report

        folder = arguments.report.with_name(f"{arguments.report.stem}_figures")
        files = write_report(reports, arguments.report, names=names, figure_folder=folder)
        console.say(f"wrote {files[0]} and {len(files) - 1} figures in {folder}", aside=True)
    found: Any = reports[0] if len(reports) == 1 else dict(zip(names, reports, strict=True))
    console.write_result(arguments.json, found)
    return console.DONE


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each table or run folder: its own name, or its path if two have the same name.

    Raises:
        ValueError: if a path is given twice.
    """
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice")
    short = [table_name(path) for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def _as_folder(name: str) -> str:
    """Turn a name that can be a path into the name of one folder."""
    return re.sub(r"[\\/:]+", "_", name).strip("_.") or "table"


def print_ladder(report: dict[str, Any]) -> None:
    """Print the table of `decide`."""
    judged = clips_and_draws(report["n_clips"], report["n"])
    fitted = clips_and_draws(report["n_clips_fit"], report["n_fit"])
    console.say(
        f"evaluated on {judged}, fitted on {fitted}; {report['groups']} groups, intervals over {report['ci_unit']}s"
    )
    width = max(len(row["method"]) for row in report["rows"])
    console.say(f"{'method':{width}s} {'n':>6s} {'accuracy':>9s} {'95 % interval':>17s} {'nll':>8s} {'ece':>7s}")
    for row in report["rows"]:
        if not row["n"]:
            console.say(f"{row['method']:{width}s} {0:6d}   answers no clip")
            continue
        low, high = row["accuracy_ci"]
        mark = " *" if row["method"] == report["chosen"] else ""
        console.say(f"{row['method']:{width}s} {row['n']:6d} {100 * row['accuracy']:9.2f} [{100 * low:7.2f},"
              f" {100 * high:7.2f}] {row['nll']:8.4f} {row['ece']:7.4f}{mark}")  # fmt: skip
    console.say(f"* chosen: {report['chosen']}: {report['reason']}")
    if len(set(report["chosen_by_part"])) > 1:
        console.say(f"  (by fold: {', '.join(report['chosen_by_part'])})")
    for line in report["refitted"]["lines"][1:]:
        console.say(f"  {line}")
    for pair in report["differences"]:
        if not pair["n"]:
            continue
        low, high = pair["accuracy_ci"]
        console.say(f"  adaptive - {pair['baseline']}: {100 * pair['accuracy']:+.2f} points [{100 * low:+.2f},"
              f" {100 * high:+.2f}], NLL {pair['nll']:+.4f}")  # fmt: skip
    for note in report["notes"]:
        console.say(f"note: {note}")


def print_diagnosis(name: str, report: dict[str, Any]) -> None:
    """Print the short form of `diagnose`; the page and the JSON hold the rest."""
    clips = clips_and_draws(report["n_clips"], report["n"])
    console.say(f"== {name}: {clips}, {report['groups']} groups; rung {report['chosen']}")
    console.say("\n".join(summary(report)))
    modalities = report["modalities"]
    heads = "".join(f" {'lean ' + m:>16s}" for m in modalities)
    console.say(f"{'method':14s} {'balance index':>13s} {'95 % interval':>16s}{heads}  lost")
    for method, found in report["balance"].items():
        low, high = found["index_ci"] or (None, None)
        leans = "".join(f" {_number(found['mean_lean'][m]['value'], '+16.3f', 16)}" for m in modalities)
        lost = report["rescued"][method]["lost"]
        console.say(f"{method:14s} {_number(found['index'], '13.3f', 13)} [{_number(low, '6.3f', 6)},"
              f" {_number(high, '6.3f', 6)}]{leans} {_number(lost and 100 * lost, '5.1f', 5)} %")  # fmt: skip
    if report["ablation"]:
        console.say("weights            accuracy     nll   over global [95 %]     over + bias [95 %]")
    for row in report["ablation"]:
        parts = []
        for key in ("over_global", "over_bias"):
            low, high = row[key]["accuracy_ci"]
            parts.append(f"{100 * row[key]['accuracy']:+6.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")
        console.say(f"{row['label']:18s} {100 * row['accuracy']:8.2f} {row['nll']:7.4f}  {'  '.join(parts)}")
    if report["balance_curve"]:
        console.say("balance penalty (class weights): accuracy, NLL, balance index")
    for point in report["balance_curve"]:
        console.say(f"  {point['penalty']:8.3g} {100 * point['accuracy']:8.2f} {point['nll']:8.4f}"
              f" {_number(point['index'], '8.3f', 8)}")  # fmt: skip
    lost = report["lost"]
    by_modality = ", ".join(f"{m} {sum(counts)}" for m, counts in lost["by_class"].items())
    console.say(f"lost by {report['in_use']['method']}: {lost['n']} clips (pulled off the label by: {by_modality})")
    for note in report["notes"]:
        console.say(f"note: {note}")


def _number(value: float | None, form: str, width: int) -> str:
    return "-".rjust(width) if value is None else format(value, form)


def _fit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fit_split", metavar="SPLIT", help="split to fit on (default: calibration)")
    parser.add_argument("--eval_split", metavar="SPLIT", help="split to evaluate on (default: test)")
    parser.add_argument("--group_folds", type=int, metavar="K", help="cross-fit over K folds of groups instead of"
                        " using two splits (default: 5 if the table lacks a calibration or a test split)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--rung", default="auto", metavar="NAME", help="use this rung (default: auto, chosen by"
                        " cross-validation)")  # fmt: skip
    parser.add_argument("--known_groups", action="store_true", help="the layer will be used on the same groups"
                        " (speakers, cameras): use folds over clips, and allow all rungs")  # fmt: skip
    parser.add_argument("--balance", type=float, default=0.0, metavar="WEIGHT", help="above 0, pull the weights of the"
                        " rung `class` to what each modality can do by itself (default: %(default)s)")  # fmt: skip
    parser.add_argument("--prior", metavar="P1,P2,...", help="class prior where the layer will be used, if known")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line or a JSON list")
    console.add_json_option(parser, "report")


def _decide(path: Path, arguments: argparse.Namespace) -> Any:
    """Read a table and evaluate the ladder on it."""
    from hf_mmbalance.decision.evaluation import decide_table
    from hf_mmbalance.decision.state import state_of_run

    options = {"rung": arguments.rung, "known_groups": arguments.known_groups, "balance": arguments.balance}
    if arguments.prior:
        options["prior"] = read_prior(arguments.prior)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = DecisionTable.read(table_path(path), read_classes(arguments.classes))
        trained = state_of_run(path) if path.is_dir() else None
    for entry in caught:
        console.say(f"warning: {entry.message}", aside=True)
    try:
        evaluated = decide_table(
            table,
            fit_split=arguments.fit_split,
            eval_split=arguments.eval_split,
            folds=arguments.group_folds,
            seed=arguments.seed,
            **options,
        )
    except TableError as error:
        raise TableError(f"{path}: {error}" if len(arguments.tables) > 1 else str(error)) from None
    if trained is not None:
        evaluated.add_head("model", trained)
    elif path.is_dir() and "reference.fused" in evaluated.fusions:
        evaluated.notes.append(
            "the run's own head has no weights to show: its decisions are in the row reference.fused, and weights,"
            " trust and lean are those of the decision layer fitted here"
        )
    return evaluated


def read_prior(text: str) -> list[float]:
    """Parse probabilities separated by commas.

    Raises:
        TableError: if one is not a number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise TableError(f"--prior {text!r}: {error}; give one probability per class, separated by commas.") from error


def read_classes(path: Path | None) -> list[str] | None:
    """Read class names from a file: a JSON list, or one name per line.

    Raises:
        TableError: if the file is not UTF-8, or holds a broken JSON list.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"--classes {path}: not UTF-8 (byte {error.start}); save the file as UTF-8.") from None
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return [str(name).strip() for name in json.loads(text)]
    except ValueError as error:
        raise TableError(f"--classes {path}: it starts like a JSON list but is not one ({error}).") from None
