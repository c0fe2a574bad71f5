"""`mmbalance predict`, `card`, `push` and `space`: trained models, metrics and the demo from a shell."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


PREDICT = """Classify clips, and show how much each modality counted and what it says on its own.

example:
  mmbalance predict clip.mp4 --model user/name --revision model-3fa2b1c9d0
  mmbalance predict *.mp4 --model outputs/my-run --top_k 3 --json answers.json
"""
CARD = """Write the card (README.md) of a finished run, with its picture and the diagnosis of its decision layer.

example:
  mmbalance card outputs/my-run --repo_id user/name
"""
PUSH = """Push a saved model to the Hub in one commit: weights, code, processor, card, and what its run measured.

What is there already is not sent again: the same command goes on with a push that was interrupted.

example:
  mmbalance push outputs/my-run user/name --private
"""
SPACE = """Push a metric or the demo as a Space.

example:
  mmbalance space modality_balance user/modality_balance               then: evaluate.load("user/modality_balance")
  mmbalance space demo user/my-demo --model user/name --trust_remote_code --examples clips/*.mp4
"""


def add_predict(subparsers: Any) -> None:
    """Add the verb `predict`."""
    parser = _verb(subparsers, "predict", PREDICT)
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="video or sound file, or its http(s) address")
    parser.add_argument("--model", required=True, metavar="ID", help="repository on the Hub, or folder")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--trust_remote_code", action="store_true", help="run a fusion head's file that comes with the"
                        " model; other code of the repository is never run")  # fmt: skip
    parser.add_argument("--top_k", type=int, default=5, help="classes shown (default: %(default)s)")
    switches = parser.add_mutually_exclusive_group()
    switches.add_argument("--no_audio", action="store_true", help="as if the clips had no sound")
    switches.add_argument("--no_vision", action="store_true", help="as if the clips had no picture")
    parser.add_argument("--window_seconds", type=float, metavar="S", help="read clips in windows of this length"
                        " (default: what the audio tower takes)")  # fmt: skip
    parser.add_argument("--stride_seconds", type=float, metavar="S", help="step between windows (default: no overlap)")
    parser.add_argument("--max_seconds", type=float, metavar="S", help="longest clip taken (default: 600)")
    parser.add_argument("--batch_size", type=int, default=1, help="windows at once (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU, if there is one)")
    parser.add_argument("--json", metavar="FILE", help="write the answers as JSON (- for stdout)")
    parser.set_defaults(func=run_predict)


def add_card(subparsers: Any) -> None:
    """Add the verb `card`."""
    parser = _verb(subparsers, "card", CARD)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="output folder of a training run")
    parser.add_argument("--repo_id", required=True, metavar="USER/NAME", help="repository that the snippets name")
    parser.set_defaults(func=run_card)


def add_push(subparsers: Any) -> None:
    """Add the verb `push`."""
    parser = _verb(subparsers, "push", PUSH)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="output folder of a run, or any saved model")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository; made if it is missing")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to (default: main)")
    parser.add_argument("--message", default="Upload trained model", help="title of the commit")
    parser.set_defaults(func=run_push)


def add_space(subparsers: Any) -> None:
    """Add the verb `space`."""
    from hf_mmbalance.hub.space_push import METRICS

    parser = _verb(subparsers, "space", SPACE)
    parser.add_argument("what", choices=[*METRICS, "demo"], help="a metric for `evaluate`, or the page of a model")
    parser.add_argument("repo_id", metavar="USER/NAME", help="Space; made if it is missing")
    parser.add_argument("--model", metavar="ID", help="demo: repository of the model it shows")
    parser.add_argument("--model_revision", help="demo: branch, tag or commit (default: the commit main is at now)")
    parser.add_argument("--trust_remote_code", action="store_true", help="demo: let the Space run the code in the"
                        " model's repository, which it needs where hf_mmbalance is not installed")  # fmt: skip
    parser.add_argument("--examples", nargs="+", type=Path, default=[], metavar="CLIP", help="demo: clips to pick from"
                        " (default: those in the folder examples/ of the model's repository)")  # fmt: skip
    parser.add_argument("--private", action="store_true", default=None, help="make a new Space private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to (default: main)")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON (- for stdout)")
    parser.set_defaults(func=run_space)


def run_predict(arguments: argparse.Namespace) -> int:
    """Run `predict`; returns the exit status (2 if a clip or the model cannot be used)."""
    from hf_mmbalance._environment import check_torchaudio
    from hf_mmbalance.hub.errors import HubError

    modalities = ["vision"] if arguments.no_audio else ["audio"] if arguments.no_vision else None
    names = ("top_k", "window_seconds", "stride_seconds", "max_seconds", "batch_size")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    try:
        check_torchaudio()
        from hf_mmbalance.hub.predict import load_classifier

        classify = load_classifier(arguments.model, arguments.revision, arguments.trust_remote_code, arguments.device)
    except (HubError, ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    answers: list[dict[str, Any]] = []
    for clip in arguments.clips:
        try:
            answers.append({"clip": clip, "answer": classify(clip, modalities=modalities, **options)})
        except (ValueError, OSError) as error:
            answers.append({"clip": clip, "error": str(error)})
            print(f"error: {error}", file=sys.stderr)
            continue
        if arguments.json != "-":
            print(render_answer(clip, answers[-1]["answer"], classify.model.config.modalities))
    status = 2 if any("error" in answer for answer in answers) else 0
    return max(status, _write_json(arguments.json, answers))


def render_answer(clip: str, answer: list[dict[str, Any]], modalities: list[str]) -> str:
    """The answer for one clip as a table; probabilities in per cent."""
    width = max(8, *(len(entry["label"]) for entry in answer))
    shares = "".join(f"{f'share {name}':>15}" for name in modalities)
    alone = "".join(f"{f'{name} alone':>15}" for name in modalities)
    lines = [f"\n{clip}", f"  {'class':<{width}} {'score':>6}{shares}{alone}"]
    for entry in answer:
        values = [f"{entry['share'][name]:.2f}" if entry["share"] else "-" for name in modalities]
        opinions = [entry["modality_score"][name] for name in modalities]
        values += ["-" if value is None else f"{100 * value:.1f}" for value in opinions]
        row = "".join(f"{value:>15}" for value in values)
        lines.append(f"  {entry['label']:<{width}} {100 * entry['score']:>6.1f}{row}")
    return "\n".join(lines)


def run_card(arguments: argparse.Namespace) -> int:
    """Run `card`; returns the exit status."""
    from hf_mmbalance.hub.errors import HubError
    from hf_mmbalance.hub.model_card import write_card

    try:
        files = write_card(arguments.run, arguments.repo_id)
    except (HubError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {', '.join(file.name for file in files)} in {arguments.run}")
    return 0


def run_push(arguments: argparse.Namespace) -> int:
    """Run `push`; returns the exit status."""
    from hf_mmbalance.hub.errors import HubError
    from hf_mmbalance.hub.model_card import pinned_revision
    from hf_mmbalance.hub.model_push import push_saved

    try:
        commit = push_saved(
            arguments.folder,
            arguments.repo_id,
            message=arguments.message,
            private=arguments.private,
            revision=arguments.revision,
        )
    except (HubError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{commit.repo_url.url}: commit {commit.oid}, revision {pinned_revision(arguments.folder)}")
    return 0


def run_space(arguments: argparse.Namespace) -> int:
    """Run `space`; returns the exit status."""
    from hf_mmbalance.hub.errors import HubError
    from hf_mmbalance.hub.space_push import publish_demo, publish_metric

    common = {"private": arguments.private, "revision": arguments.revision}
    try:
        if arguments.what != "demo":
            done = publish_metric(arguments.what, arguments.repo_id, **common)
        elif arguments.model is None:
            raise ValueError("the demo needs --model: the repository of the model it shows")
        else:
            done = publish_demo(
                arguments.repo_id,
                arguments.model,
                model_revision=arguments.model_revision,
                trust_remote_code=arguments.trust_remote_code,
                examples=arguments.examples,
                **common,
            )
    except (HubError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json != "-":
        print("\n".join(f"{name:<15} {value}" for name, value in done.items()))
    if arguments.what == "demo" and not arguments.trust_remote_code:
        text = f"the Space may not run the code in {done['model']}, and starts only where hf_mmbalance is installed"
        print(f"note: {text}; read that code, and if you trust it pass --trust_remote_code", file=sys.stderr)
    return _write_json(arguments.json, done)


def _write_json(place: str | None, result: Any) -> int:
    """Write the result where `--json` says; returns the exit status."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if place == "-":
        print(text)
    elif place is not None:
        try:
            Path(place).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            print(f"error: --json {place} cannot be written ({error.strerror}); name another file", file=sys.stderr)
            return 2
    return 0


def _verb(subparsers: Any, name: str, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return made
