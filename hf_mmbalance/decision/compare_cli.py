"""`mmbalance compare`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hf_mmbalance import console


#: Returns the local folder or file for a name on the command line, and notes about it for the user.
Find = Callable[[str], tuple[Path, list[str]]]

COMPARE = """Compare runs, tables and models on the Hub: on the same test clips.

Runs that differ only in their seed count as one configuration, shown by its mean and spread over seeds. Each run's own
head (fitted after the towers, trained with them, or without parameters) is shown with the plain sum of its towers and
each modality; for a table from another program, a decision layer is fitted here. For a model on the Hub, the table
that was pushed with it is used (`mmbalance push`, or --push_to_hub in training).

example:
  mmbalance compare outputs/adaptive-s0 outputs/adaptive-s1 outputs/concat-s0 outputs/concat-s1
  mmbalance compare outputs/*-s? --baseline concat --latex table.tex --csv table.csv --figure intervals
  mmbalance compare theirs.parquet outputs/ours --refit --json -
  mmbalance compare user/published@model-3fa2b1c9d0 outputs/ours
"""


def add_compare(verbs: Any, find: Find) -> None:
    """Add the verb `compare`; `find` also looks up names of models on the Hub."""
    parser = console.add_verb(verbs, "compare", COMPARE, partial(run_compare, find=find))
    parser.add_argument("sources", nargs="+", metavar="RUN|TABLE|MODEL", help="run folders, decision tables, or models"
                        " on the Hub (user/name or user/name@revision)")  # fmt: skip
    parser.add_argument("--eval_split", default="test", metavar="SPLIT", help="split to evaluate on"
                        " (default: %(default)s)")  # fmt: skip
    parser.add_argument("--baseline", metavar="NAME", help="compare all with this configuration (default: all pairs)")
    parser.add_argument("--refit", action="store_true", help="also fit a decision layer to the logits of every run,"
                        " whichever head it has")  # fmt: skip
    parser.add_argument("--draws", type=console.positive, default=2000, help="bootstrap draws (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows as CSV")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="write the rows as a LaTeX table")
    parser.add_argument("--figure", type=Path, metavar="NAME", help="plot the intervals to NAME.png, .svg and .pdf")
    console.add_json_option(parser, "comparison")


def run_compare(arguments: argparse.Namespace, find: Find) -> int:
    """Run `compare` and return the exit status."""
    from hf_mmbalance.decision.compare import compare_sources, read_source
    from hf_mmbalance.decision.compare_output import latex_of, text_of, write_csv
    from hf_mmbalance.decision.table_files import table_name

    for place in (arguments.json, arguments.csv, arguments.latex):
        console.check_place(place)
    twice = next((given for given in arguments.sources if arguments.sources.count(given) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice")
    options = {"split": arguments.eval_split, "refit": arguments.refit}
    with console.progress(len(arguments.sources), "reading", "table") as step:
        places = [find(given) for given in arguments.sources]
        names = [
            given.partition("@")[0] if notes else table_name(path)
            for given, (path, notes) in zip(arguments.sources, places, strict=True)
        ]
        sources = []
        for given, name, (path, notes) in zip(arguments.sources, names, places, strict=True):
            source = read_source(path, name=name if names.count(name) == 1 else given, **options)
            source.notes = notes + source.notes
            sources.append(source)
            step()
    found = compare_sources(sources, baseline=arguments.baseline, draws=arguments.draws, seed=arguments.seed)
    if console.shows_text(arguments):
        console.say(text_of(found))
    if arguments.csv is not None:
        write_csv(arguments.csv, found)
    if arguments.latex is not None:
        arguments.latex.parent.mkdir(parents=True, exist_ok=True)
        arguments.latex.write_text(latex_of(found), encoding="utf-8")
    if arguments.figure is not None:
        from hf_mmbalance.decision import figures

        files = figures.save(figures.draw(figures.comparison, found), arguments.figure)
        console.say(f"wrote {', '.join(map(str, files))}", aside=True)
    console.write_result(arguments.json, found)
    return console.DONE
