"""The first screen of `train --help`: the options that most runs need, shown without importing torch."""

from __future__ import annotations

import sys
from pathlib import Path


#: Group -> options: name, value, description with the default. `--help_all` lists every option.
SCREEN = {
    "clips": [
        ("dataset", "NAME", "synthetic (default), grid, a folder of class folders, a table, user/name"),
        ("frames", "N", "frames per clip (default 8; synthetic 4)"),
        ("crop", "L T R B", "part of every frame to keep, in fractions, e.g. 0.3 0.7 0.7 1.0"),
        ("train_corruptions", "KIND ..", "corrupt train clips: kinds, groups such as seen (default none)"),
    ],
    "model": [
        ("audio_model", "ID", "audio backbone (default: AST-base trained on AudioSet)"),
        ("vision_model", "ID", "vision backbone (default: ViT-base trained on ImageNet-21k)"),
        ("model_name_or_path", "ID", "start from a model of this package instead of two backbones"),
        ("trainable_layers", "K", "all (default), 0 to freeze the towers, k for their last k layers"),
        ("fusion", "HEAD", "adaptive (default), sum, concat, gated, ... or my_head.py:MyHead"),
        ("frame_pooling", "KIND", "mean (default), or temporal where order and motion matter"),
    ],
    "training": [
        ("num_train_epochs", "N", "passes over the train clips (default 3; synthetic 14)"),
        ("learning_rate", "RATE", "learning rate of towers and heads (default 0.0001; synthetic 0.003)"),
        ("per_device_train_batch_size", "N", "clips per process and step (default 16; synthetic 8)"),
        ("modality_dropout", "A V", "rates at which train clips lose audio, vision (default 0.0 0.0)"),
        ("early_stopping_patience", "N", "stop after N validations without improvement"),
        ("metric_for_best_model", "NAME", "nll (default), accuracy, accuracy_audio, ..."),
        ("seed", "N", "random seed of weights, order, dropout and augmentation (default 0)"),
    ],
    "decision layer": [
        ("decision_rung", "RUNG", "auto (default) chooses by cross-validation; or a rung by name"),
        ("known_groups", "", "the model will be used on the same speakers or cameras as in the clips"),
        ("calibration_corruptions", "KIND ..", "corrupt calibration clips: kinds, groups (default seen)"),
    ],
    "run": [
        ("config", "NAME", "a YAML file, or a packaged config such as grid_digits; options override"),
        ("output_dir", "FOLDER", "default: outputs/<dataset>-<time>-s<seed>"),
        ("resume_from_checkpoint", "true", "resume the run in --output_dir"),
        ("report_to", "TRACKER", "tensorboard, trackio, wandb, ... (default none)"),
        ("push_to_hub", "", "push the trained model with its card to --hub_model_id USER/NAME"),
    ],
}
EXAMPLES = [
    ("", "synthetic clips, about a minute on any machine"),
    ("--dataset my_clips/ --trainable_layers 2", "a folder of class folders"),
    ("--dataset mteb/AVE-Dataset", "a dataset on the Hub (docs/data.md)"),
    ("--dataset clips.csv --help_all", "every option that applies to these clips"),
]


def program() -> str:
    """Return the name under which this program was called, for usage lines."""
    name = Path(sys.argv[0]).name
    return name if name == "train.py" else "mmbalance train"


def first_screen() -> str:
    """Return the text of `--help`."""
    called = program()
    lines = [f"usage: {called} [--config NAME] [--option VALUE ...]", ""]
    lines.append("Train an audio-visual classifier with an adaptive decision layer.")
    for group, options in SCREEN.items():
        lines.append(f"\n{group}:")
        for name, value, text in options:
            option = f"--{name} {value}".rstrip()
            lines += [f"  {option:<30} {text}"] if len(option) <= 30 else [f"  {option}", f"  {'':<30} {text}"]
    lines.append("\nexamples:")
    for words, text in EXAMPLES:
        lines.append(f"  {f'{called} {words}':<{len(called) + 46}} {text}")
    return "\n".join(lines)
