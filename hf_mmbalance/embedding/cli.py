"""The commands `mmbalance embed` and `mmbalance fuse`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mmbalance import console
from hf_mmbalance.embedding.dataset_options import add_dataset_options, load_dataset


if TYPE_CHECKING:
    from hf_mmbalance.embedding.build import TowerName

EMBED = """Run frozen towers once over every clip and store their features.

To resume a killed run, repeat the command. If clips, weights or reading options changed, only the affected features
are recomputed. To use several processes: accelerate launch -m hf_mmbalance embed ...

example:
  mmbalance embed --audio_model A --vision_model B --dataset clips.csv --out embeddings
  mmbalance embed --audio_model A --vision_model B --dataset clips.csv --out part0 --shard 0/2   (one of two machines)
  mmbalance embed --merge part0 part1 --out embeddings
  mmbalance train --embeddings embeddings --num_train_epochs 20
"""
FUSE = """Build one classifier from two models and a few labelled clips.

The audio model and the vision model can each be a classifier or a backbone. A classifier keeps its own head, and its
labels are mapped to the clips' classes by name. For a backbone, a head is fitted. The result is an ordinary model of
this package.

example:
  mmbalance fuse --audio_model A --vision_model B --dataset clips.csv --out model
  mmbalance fuse --audio_model A --vision_model B --dataset clips.csv --label_map labels.json --out model
  mmbalance predict clip.mp4 --model model
"""


def add_embed(verbs: Any) -> None:
    """Add the verb `embed`."""
    parser = console.add_verb(verbs, "embed", EMBED, run_embed)
    parser.add_argument("--dataset", help="clips: a table, a folder of class folders, a dataset on the Hub, ...")
    _add_towers(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the features")
    parser.add_argument("--draws_of", nargs="+", default=["calibration"], metavar="SPLIT", help="splits that --draws"
                        " applies to (default: calibration)")  # fmt: skip
    parser.add_argument("--augmented", type=int, default=1, metavar="N", help="versions of each train clip; all but"
                        " the first are augmented as in training (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--shard",
        type=console.shard,
        default=(0, 1),
        metavar="I/N",
        help="embed only part I of N (counted from 0), to share the work between N machines",
    )
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FOLDER", help="join the folders of all shards")
    _add_running(parser)
    add_dataset_options(parser, hidden=("unlabelled",))
    console.add_json_option(parser, "counts")


def add_fuse(verbs: Any) -> None:
    """Add the verb `fuse`."""
    parser = console.add_verb(verbs, "fuse", FUSE, run_fuse)
    parser.add_argument("--dataset", required=True, help="clips, some or all labelled: a table, a folder of class"
                        " folders, or a dataset on the Hub")  # fmt: skip
    _add_towers(parser, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for model and report")
    parser.add_argument("--classes", dest="data.classes", nargs="+", metavar="NAME", default=argparse.SUPPRESS,
                        help="classes, in order (default: the labels found)")  # fmt: skip
    parser.add_argument("--label_map", type=Path, metavar="FILE", help="JSON or YAML: modality -> label of its"
                        " classifier -> class")  # fmt: skip
    parser.add_argument("--backbone_only", nargs="+", default=[], choices=("audio", "vision"), metavar="MODALITY",
                        help="fit a new head instead of keeping this classifier's own")  # fmt: skip
    parser.add_argument("--embeddings", type=Path, metavar="FOLDER", help="folder for the features (default:"
                        " OUT/embeddings); matching features in it are reused, others are removed")  # fmt: skip
    parser.add_argument("--rung", default="auto", help="rung of the decision layer (default: chosen by"
                        " cross-validation)")  # fmt: skip
    parser.add_argument("--known_groups", action="store_true", help="the model will be used on the same groups"
                        " (speakers, cameras) as in these clips")  # fmt: skip
    parser.add_argument("--push_to_hub", action="store_true", help="push the model with its card")
    parser.add_argument("--hub_model_id", metavar="USER/NAME", help="repository (default: the name of OUT)")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    _add_running(parser)
    add_dataset_options(parser, hidden=("unlabelled", "classes"))
    console.add_json_option(parser)


def _add_towers(parser: argparse.ArgumentParser, required: bool = False) -> None:
    for modality in ("audio", "vision"):
        parser.add_argument(f"--{modality}_model", required=required, metavar="ID", help=f"{modality} model:"
                            " repository on the Hub, or folder")  # fmt: skip
        parser.add_argument(f"--{modality}_revision", metavar="REV", help="branch, tag or commit of this model")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the models")


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draws", type=int, default=1, metavar="N", help="versions of each clip, all"
                        " but the first corrupted; with 3, the decision layer learns to recognise bad audio and"
                        " frames, at 2.3 times the cost (default: %(default)s)")  # fmt: skip
    parser.add_argument("--corruptions", nargs="+", default=["seen"], metavar="NAME", help="kinds of corruption, or"
                        " groups such as seen (default: seen)")  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=8, help="clips per forward pass (default: %(default)s)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: bfloat16 on a GPU, else float32)")
    parser.add_argument("--seed", type=int, default=0, help="seed of folds and corruptions (default: %(default)s)")


def _start() -> bool:
    """Connect the launched processes and return True in the main one."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from hf_mmbalance._environment import check_torchaudio
    from hf_mmbalance.processes import check_joined, prefer_cpu_where_there_is_no_accelerator

    check_torchaudio()
    prefer_cpu_where_there_is_no_accelerator()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_joined(state.num_processes)
    return bool(state.is_main_process)


def run_embed(arguments: argparse.Namespace) -> int:
    """Run `embed` and return the exit status."""
    main = _start()
    from hf_mmbalance.embedding.build import build_towers
    from hf_mmbalance.embedding.embed import merge
    from hf_mmbalance.embedding.run import embed_clips
    from hf_mmbalance.embedding.stored import Embeddings

    if arguments.merge:
        merge(arguments.merge, arguments.out)
        if console.shows_text(arguments):
            console.say(f"{arguments.out} is complete")
        console.write_result(arguments.json, {"rows": len(Embeddings.read(arguments.out))})
        return console.DONE
    if arguments.dataset is None or arguments.audio_model is None or arguments.vision_model is None:
        raise ValueError("give --dataset, --audio_model and --vision_model; or --merge the folders of shards")
    clips, _ = load_dataset(arguments)
    for note in clips.notes if main else ():
        console.say(f"note: {note}", aside=True)
    towers = _towers(arguments)
    model, processor = build_towers(towers, clips, {}, trust_remote_code=arguments.trust_remote_code)
    splits = tuple(arguments.draws_of)
    counts = embed_clips(arguments, towers, clips, model, processor, arguments.out, splits, arguments.augmented)
    if not main:
        return console.DONE
    if console.shows_text(arguments):
        console.say(f"{counts['rows']} rows in {arguments.out}: {counts['computed']} features computed,"
                    f" {counts['reused']} reused")  # fmt: skip
    console.write_result(arguments.json, counts)
    return console.DONE


def _towers(arguments: argparse.Namespace) -> dict[str, TowerName]:
    from hf_mmbalance.embedding.build import TowerName

    without = getattr(arguments, "backbone_only", [])
    return {
        modality: TowerName(
            getattr(arguments, f"{modality}_model"), getattr(arguments, f"{modality}_revision"), modality in without
        )
        for modality in ("audio", "vision")
    }


def run_fuse(arguments: argparse.Namespace) -> int:
    """Run `fuse` and return the exit status."""
    main = _start()
    from hf_mmbalance.embedding.outcome import render
    from hf_mmbalance.embedding.run import fuse_models

    if arguments.out.exists() and any(path.name != "embeddings" for path in arguments.out.iterdir()):
        raise ValueError(f"{arguments.out} is not empty: give a new folder, or remove what is in it")
    repo_id = _prepare_push(arguments) if main else None
    results = fuse_models(arguments, _towers(arguments))
    if not main:
        return console.DONE
    if console.shows_text(arguments):
        console.say(render(results))
        console.say(f"\nthe model is in {arguments.out}: mmbalance predict CLIP --model {arguments.out}")
    console.write_result(arguments.json, results)
    if repo_id is not None:
        _push(arguments, repo_id)
    return console.DONE


def _prepare_push(arguments: argparse.Namespace) -> str | None:
    if not arguments.push_to_hub:
        return None
    from hf_mmbalance.hub.model_push import prepare_repo

    return prepare_repo(arguments.hub_model_id or arguments.out.absolute().name, private=arguments.private)


def _push(arguments: argparse.Namespace, repo_id: str) -> None:
    from hf_mmbalance.hub.model_push import push_saved

    commit = push_saved(arguments.out, repo_id, message="Upload fused model", private=arguments.private)
    console.say(f"pushed to {commit.repo_url.url}", aside=not console.shows_text(arguments))
