"""Going on with a run that was stopped: its checkpoints, the command, and whether it is still the same run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_mmbalance import MMBalanceConfig
from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.json_files import json_text, write_json
from hf_mmbalance.provenance import command, fingerprint
from hf_mmbalance.scrubbing import scrub_all
from hf_mmbalance.training.arguments import RunArguments
from hf_mmbalance.training.checks import check_classes


ORIGIN = "run.json"  # in a checkpoint: the clips and options of the run that made it
#: Options that change where a run is written or shown, not what it learns.
PLACES = {
    "output_dir", "resume_from_checkpoint", "run_name", "report_to", "disable_tqdm", "logging_steps", "data_dir",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "num_workers", "dataloader_num_workers",
}  # fmt: skip


def train_command(argv: list[str]) -> str:
    """The command of a run as it can be given again."""
    start = ["mmbalance", "train"] if Path(sys.argv[0]).name == "mmbalance" else ["accelerate", "launch", "train.py"]
    return command([*start, *argv])


def resume_command(arguments: RunArguments) -> str:
    """The command by which a run that was stopped goes on."""
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
    """The newest `checkpoint-N` that was written to its end; a killed run may leave a half-written one behind."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.split("-", 1)[1].isdecimal()]
    complete = [path for path in numbered if is_complete(path)]
    return max(complete, key=lambda path: int(path.name.split("-", 1)[1]), default=None)


def is_complete(checkpoint: Path) -> bool:
    """Whether the file that is written last is there and whole."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


class KeepOrigin(TrainerCallback):
    """Writes into every checkpoint from which clips and options it comes, and compares them when it is resumed.

    Args:
        clips: of the run.
        arguments: of the run.
        checkpoint: the one to resume from, if any.

    Attributes:
        changes: options (and number of processes) that differ from those of the run that made the checkpoint, e.g.
            `num_train_epochs 3 -> 5`; those of earlier resumes come first.

    Raises:
        ValueError: the checkpoint has other classes or was trained on other clips.
    """

    def __init__(self, clips: ClipSplits, arguments: RunArguments, checkpoint: str | None):
        sizes = {split: len(part) for split, part in clips.splits.items()}
        stored = clips.reading and clips.reading.stored  # how a built data set stores clips: it may be built again
        options = {**arguments.to_dict(), "stored": stored and stored.to_dict()}
        options["processes"] = arguments.training.world_size  # clips per step depend on it
        origin = {"fingerprint": fingerprint(clips), "clips": sizes, "arguments": options}
        self.origin: dict[str, Any] = json.loads(json_text(scrub_all(origin)))  # as it will be read
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


def changes_since(checkpoint: Path, now: dict[str, Any]) -> list[str]:
    """How a run's origin differs from that of a checkpoint; `changes` of `KeepOrigin`.

    Without the file (a checkpoint of another program) nothing can be compared.

    Raises:
        ValueError: the clips are others, so that the run's place in its epoch and the splits would be wrong.
    """
    try:
        before = json.loads((checkpoint / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if before["fingerprint"] != now["fingerprint"]:
        raise ValueError(
            f"{checkpoint} was trained on other clips ({_sizes(before['clips'])}; now {_sizes(now['clips'])}): go on"
            " with the same clips and splits, or start a new run from its weights with"
            f" --model_name_or_path {checkpoint}"
        )
    old, new = before["arguments"], now["arguments"]
    names = [name for name in new if name not in PLACES and old.get(name) != new[name]]
    return [*before["changes"], *(f"{name} {old.get(name)} -> {new[name]}" for name in names)]


def _sizes(clips: dict[str, int]) -> str:
    return ", ".join(f"{split} {count}" for split, count in clips.items())
