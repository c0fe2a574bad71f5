"""`mmbalance VERB ...`: the command line of the package; each verb is defined next to the code it runs."""

from __future__ import annotations

import argparse
import sys

from hf_mmbalance import console


EPILOG = """examples:
  mmbalance train --config grid_digits --data_dir GRID            the same as train.py
  mmbalance fuse --audio_model A --vision_model B --dataset clips.csv --out model      two models fused into one
  mmbalance predict clip.mp4 --model user/name                         classes, fused and by each modality
  mmbalance decide outputs/grid-.../decisions.parquet                  compare every form of the decision layer
  mmbalance diagnose outputs/grid-... --report lean.html               which modality a model relies on, and why
  mmbalance compare outputs/*                                          runs side by side, with intervals
  mmbalance robustness outputs/grid-...                                its model under corrupted audio and frames
  mmbalance push outputs/grid-... user/name                            publish the model with its card
"""


def main(argv: list[str] | None = None) -> int:
    """Run a verb and return its exit status (listed in `console`)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:  # its options depend on the dataset
        from hf_mmbalance.training.cli import train

        return train(argv[1:])
    console.hide_bars_in_log_files()
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "func"):
        parser.print_help()
        return console.REFUSED
    flags = [flag for action in parser.parser_of(argv)._actions for flag in action.option_strings]
    options = [flag.removeprefix("--") for flag in flags if flag.startswith("--")]
    return console.run_command(lambda: int(arguments.func(arguments)), options=options)


def build_parser() -> console.Parser:
    """Build the parser of all verbs."""
    import hf_mmbalance
    from hf_mmbalance.completion import add_completion
    from hf_mmbalance.decision.cli import add_decide, add_diagnose
    from hf_mmbalance.decision.compare_cli import add_compare
    from hf_mmbalance.embedding.cli import add_embed, add_fuse
    from hf_mmbalance.hub.cli import add_card, add_push, add_space
    from hf_mmbalance.hub.onnx_export import add_export
    from hf_mmbalance.hub.predict import add_predict
    from hf_mmbalance.hub.run_files import run_files
    from hf_mmbalance.robustness.cli import add_robustness

    parser = console.Parser(
        prog="mmbalance",
        description="Audio-visual classification with a fitted, calibrated decision layer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=hf_mmbalance.__version__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    verbs.add_parser("train", help="Train a model (the same as train.py)")
    add_fuse(verbs)
    add_embed(verbs)
    add_predict(verbs)
    add_decide(verbs)
    add_diagnose(verbs)
    add_compare(verbs, run_files)
    add_robustness(verbs)
    add_card(verbs)
    add_push(verbs)
    add_space(verbs)
    add_export(verbs)
    add_completion(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
