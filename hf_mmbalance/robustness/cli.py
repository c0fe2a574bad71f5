"""The command `mmbalance robustness`, which evaluates a trained model under corrupted audio and frames."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_mmbalance import console


ROBUSTNESS = """Evaluate a run's model under corrupted audio and frames.

Each kind of corruption is applied at severities 1 to 5 to the run's own test clips: accuracy, NLL and mean trust of
the fusion, of each modality and of their plain sum. Kinds seen in calibration or training are reported separately
from unseen ones. Repeat the command if it was interrupted: it resumes.

kinds: babble telephone dropouts white_noise pink_noise clipping reverberation (audio), sensor_noise blur pixelate
darkness occlusion jpeg_compression frozen_frames (frames), conflict missing_audio missing_vision

example:
  mmbalance robustness outputs/my-run
  mmbalance robustness fused --kinds babble blur                  (output of `mmbalance fuse --test_fraction 0.3`)
  mmbalance robustness outputs/my-run --kinds unseen conflict --severities 3 5 --max_clips 200 --json -
"""


def add_robustness(verbs: Any) -> None:
    """Add the verb `robustness`."""
    parser = console.add_verb(verbs, "robustness", ROBUSTNESS, run_robustness)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="output folder of training, or of"
                        " `mmbalance fuse`")  # fmt: skip
    parser.add_argument("--kinds", nargs="+", default=["all"], metavar="NAME", help="kinds, or groups of kinds: seen,"
                        " unseen, audio, vision, all (default: all)")  # fmt: skip
    parser.add_argument("--severities", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="N", help="severities to"
                        " evaluate, 1 to 5 (default: all)")  # fmt: skip
    parser.add_argument("--max_clips", type=int, metavar="N", help="evaluate only N test clips, spread over the split")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corruptions (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for cells and figures (default:"
                        " RUN_FOLDER/robustness)")  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU, if there is one)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the file of a fusion head saved with the"
                        " model")  # fmt: skip
    parser.add_argument("--no_figures", action="store_true", help="draw no curves")
    console.add_json_option(parser, "numbers")


def run_robustness(arguments: argparse.Namespace) -> int:
    """Run `robustness` and return the exit status."""
    from hf_mmbalance._environment import check_device, check_torchaudio

    check_torchaudio()
    check_device(arguments.device)
    report, out = _judge(arguments)
    if console.shows_text(arguments):
        from hf_mmbalance.robustness.judge import render

        console.say(render(report))
    if not arguments.no_figures:
        from hf_mmbalance.robustness.figure import write_figures

        files = write_figures(report, out)
        console.say(f"wrote {', '.join(file.name for file in files)} in {out}", aside=True)
    console.write_result(arguments.json, report)
    return console.DONE


def _judge(arguments: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    from hf_mmbalance.data.corruptions import check_severity, kinds_of
    from hf_mmbalance.robustness.cells import judge_cells
    from hf_mmbalance.robustness.judge import judge
    from hf_mmbalance.robustness.run import load_run

    kinds = kinds_of(arguments.kinds)  # check before a model is loaded
    severities = [check_severity(severity) for severity in arguments.severities]
    run = load_run(arguments.run, arguments.max_clips, arguments.trust_remote_code)
    out = arguments.out or arguments.run / "robustness"
    cells = judge_cells(run, out / "cells", kinds, severities, seed=arguments.seed, device=arguments.device)
    modalities = list(run.model.config.modalities)
    return judge(cells, run.clips.labels, run.clips.groups, modalities, run.log_prior, run.seen, run.known), out
