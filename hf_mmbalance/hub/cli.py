"""The commands `mmbalance card`, `push` and `space`, for cards, trained models, metrics and the demo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_mmbalance import console


CARD = """Write the card (README.md) of a finished run: results, figure and the diagnosis of its decision layer.

example:
  mmbalance card outputs/my-run --repo_id user/name
"""
PUSH = """Push a saved model to the Hub in one commit: weights, code, processor, card, and the results of its run.

Files already on the Hub are not sent again, so the same command resumes an interrupted push.

example:
  mmbalance push outputs/my-run user/name --private
"""
SPACE = """Push a metric or the demo as a Space.

example:
  mmbalance space modality_balance user/modality_balance               then: evaluate.load("user/modality_balance")
  mmbalance space demo user/my-demo --model user/name --trust_remote_code --examples clips/*.mp4
"""


def add_card(verbs: Any) -> None:
    """Add the verb `card`."""
    parser = console.add_verb(verbs, "card", CARD, run_card)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="output folder of a training run")
    parser.add_argument("--repo_id", required=True, metavar="USER/NAME", help="repository to name in the snippets")


def add_push(verbs: Any) -> None:
    """Add the verb `push`."""
    parser = console.add_verb(verbs, "push", PUSH, run_push)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="output folder of a run, or any saved model")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository; created if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to (default: main)")
    parser.add_argument("--message", default="Upload trained model", help="title of the commit")
    console.add_json_option(parser)


def add_space(verbs: Any) -> None:
    """Add the verb `space`."""
    from hf_mmbalance.hub.space_push import METRICS

    parser = console.add_verb(verbs, "space", SPACE, run_space)
    parser.add_argument("what", choices=[*METRICS, "demo"], help="a metric for `evaluate`, or the demo of a model")
    parser.add_argument("repo_id", metavar="USER/NAME", help="Space; created if it does not exist")
    parser.add_argument("--model", metavar="ID", help="demo: repository of the model to show")
    parser.add_argument("--model_revision", help="demo: branch, tag or commit (default: the current commit of main)")
    parser.add_argument("--trust_remote_code", action="store_true", help="demo: let the Space run the code in the"
                        " model's repository; required if hf_mmbalance is not installed there")  # fmt: skip
    parser.add_argument("--examples", nargs="+", type=Path, default=[], metavar="CLIP", help="demo: example clips"
                        " (default: those in the folder examples/ of the model's repository)")  # fmt: skip
    parser.add_argument("--private", action="store_true", default=None, help="make a new Space private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to (default: main)")
    console.add_json_option(parser)


def run_card(arguments: argparse.Namespace) -> int:
    """Run `card` and return the exit status."""
    from hf_mmbalance.hub.model_card import write_card

    files = write_card(arguments.run, arguments.repo_id)
    console.say(f"wrote {', '.join(file.name for file in files)} in {arguments.run}")
    return console.DONE


def run_push(arguments: argparse.Namespace) -> int:
    """Run `push` and return the exit status."""
    from hf_mmbalance.hub.model_card import pinned_revision
    from hf_mmbalance.hub.model_push import push_saved

    commit = push_saved(
        arguments.folder,
        arguments.repo_id,
        message=arguments.message,
        private=arguments.private,
        revision=arguments.revision,
    )
    repo, tag = commit.repo_url, pinned_revision(arguments.folder)
    _show({"repo": repo.repo_id, "url": repo.url, "commit": commit.oid, "tag": tag}, arguments)
    return console.DONE


def _show(done: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print what was pushed, and write it to the file given by `--json`."""
    if console.shows_text(arguments):
        console.say(console.fields(done))
    console.write_result(arguments.json, done)


def run_space(arguments: argparse.Namespace) -> int:
    """Run `space` and return the exit status."""
    from hf_mmbalance.hub.space_push import publish_demo, publish_metric

    common = {"private": arguments.private, "revision": arguments.revision}
    if arguments.what != "demo":
        done = publish_metric(arguments.what, arguments.repo_id, **common)
    elif arguments.model is None:
        raise ValueError("the demo needs --model: give the repository of the model to show")
    else:
        done = publish_demo(
            arguments.repo_id,
            arguments.model,
            model_revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
            examples=arguments.examples,
            **common,
        )
    _show(done, arguments)
    if arguments.what == "demo" and not arguments.trust_remote_code:
        text = f"the Space may not run the code in {done['model']}, so it only starts if hf_mmbalance is installed"
        console.say(f"note: {text}; read that code, and if you trust it, pass --trust_remote_code", aside=True)
    return console.DONE
