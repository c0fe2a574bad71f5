"""Resuming a stopped run: its checkpoints, the command, and the check that it is still the same run."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_mmbalance import MMBalanceConfig
from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.decision.results import PLACES
from hf_mmbalance.json_files import json_text, write_json
from hf_mmbalance.provenance import command, fingerprint
from hf_mmbalance.scrubbing import scrub_all
from hf_mmbalance.training.arguments import ModelArguments, RunArguments
from hf_mmbalance.training.checks import check_classes


ORIGIN = "run.json"  # file in a checkpoint with the clips and options of the run that wrote it
#: Options that a checkpoint fixes: the structure of its model and the settings in the state of its optimiser.
SETTLED = (
    "model_name_or_path", "audio_model", "audio_config", "audio_max_length", "vision_model", "vision_config",
    "trainable_layers", "fusion", "fusion_options", "unimodal_head", "frame_pooling", "balancing", "optim",
    "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
#: Options by which its best checkpoint was selected.
SELECTION = ("metric_for_best_model", "greater_is_better")


def train_command(argv: list[str]) -> str:
    """Return the command of a run, which can be run again."""
    start = ["mmbalance", "train"] if Path(sys.argv[0]).name == "mmbalance" else ["accelerate", "launch", "train.py"]
    return command([*start, *argv])


def resume_command(arguments: RunArguments) -> str:
    """Return the command that resumes a stopped run."""
    kept: list[str] = []
    words = iter(arguments.argv)
    for word in words:
        option = word.split("=")[0]
        if option not in ("--output_dir", "--resume_from_checkpoint"):
            kept.append(word)
        elif option == word:
            next(words, None)  # its value
    return train_command(
        [*kept, "--output_dir", str(arguments.training.output_dir), "--resume_from_checkpoint", "true"]
    )


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest `checkpoint-N` that is complete; a killed run may leave a half-written one behind."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.split("-", 1)[1].isdecimal()]
    complete = [path for path in numbered if is_complete(path)]
    return max(complete, key=lambda path: int(path.name.split("-", 1)[1]), default=None)


def is_complete(checkpoint: Path) -> bool:
    """Return True if the file that is written last exists and can be parsed."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


class KeepOrigin(TrainerCallback):
    """Records the clips and options of the run in every checkpoint, and compares them when a run is resumed.

    Args:
        clips: clips of the run.
        arguments: options of the run.
        checkpoint: checkpoint to resume from, if any.

    Attributes:
        changes: options (and number of processes) that differ from those of the run that wrote the checkpoint, e.g.
            `num_train_epochs 3 -> 5`; changes of earlier resumes come first.

    Raises:
        ValueError: if the checkpoint has different classes or was trained on different clips.
    """

    def __init__(self, clips: ClipSplits, arguments: RunArguments, checkpoint: str | None):
        sizes = {split: len(part) for split, part in clips.splits.items()}
        stored = clips.reading and clips.reading.stored  # how a built dataset stores clips: it may have been rebuilt
        options = {**arguments.to_dict(), **_own_code(arguments.model), "stored": stored and stored.to_dict()}
        options["processes"] = arguments.training.world_size  # clips per step depend on it
        origin = {"fingerprint": fingerprint(clips), "clips": sizes, "arguments": options}
        self.origin: dict[str, Any] = json.loads(json_text(scrub_all(origin)))  # as it will be read back
        self.changes: list[str] = []
        if checkpoint is not None:
            check_classes(MMBalanceConfig.from_pretrained(checkpoint), clips.classes)
            self.changes = changes_since(Path(checkpoint), self.origin)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_json(folder / ORIGIN, {**self.origin, "changes": self.changes})
        return control


class EarlyStopping(EarlyStoppingCallback):
    """As in transformers, but a resumed run uses the patience given now, and a run that had ended is not continued."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience = args.early_stopping_patience  # the old value was restored with the count
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


def changes_since(checkpoint: Path, now: dict[str, Any]) -> list[str]:
    """Return how a run's origin differs from that of a checkpoint; see `KeepOrigin.changes`.

    Nothing is compared if the checkpoint has no such file, e.g. because a different program wrote it.

    Raises:
        ValueError: if the clips or the number of clips per step differ, so that the run's place in its epoch and the
            splits would be wrong, or if an option that the checkpoint fixes has a different value.
    """
    try:
        before = json.loads((checkpoint / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    anew = f"start a new run from its weights with --model_name_or_path {checkpoint}"
    if before["fingerprint"] != now["fingerprint"]:
        raise ValueError(
            f"{checkpoint} was trained on different clips ({_sizes(before['clips'])}; now {_sizes(now['clips'])}):"
            f" resume with the same clips and splits, or {anew}"
        )
    old, new = before["arguments"], now["arguments"]
    changed = {
        name: f"{name} {old.get(name)} -> {new[name]}"
        for name in new
        if name not in PLACES and old.get(name) != new[name]
    }
    selected = None not in (old["metric_for_best_model"], new["metric_for_best_model"])
    settled = [changed[name] for name in SETTLED + SELECTION * selected if name in changed]
    if settled:
        raise ValueError(f"{checkpoint} cannot be resumed with {'; '.join(settled)}: undo that change, or {anew}")
    steps = [_clips_per_step(arguments) for arguments in (old, new)]
    if steps[0] != steps[1] and not new["auto_find_batch_size"]:
        raise ValueError(
            f"{checkpoint} was trained with {steps[0]} clips per step, not {steps[1]} (per_device_train_batch_size"
            f" times gradient_accumulation_steps times processes), and its steps and epochs depend on this number:"
            f" choose values whose product is {steps[0]}, or {anew}"
        )
    return [*before["changes"], *changed.values()]


def _own_code(model: ModelArguments) -> dict[str, str]:
    """Return checksums of the user's own files that the run uses, by the option that names them."""
    named = {name: Path(str(getattr(model, name)).rpartition(":")[0]) for name in ("fusion", "balancing")}
    return {
        f"the file of {name}": hashlib.sha256(file.read_bytes()).hexdigest()[:10]
        for name, file in named.items()
        if file.suffix == ".py" and file.is_file()
    }


def _clips_per_step(arguments: dict[str, Any]) -> int:
    return math.prod(
        arguments[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")
    )


def _sizes(clips: dict[str, int]) -> str:
    return ", ".join(f"{split} {count}" for split, count in clips.items())
