"""One training run, from arguments to saved model, table and results."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from hf_mmbalance.balancing import BalancingMethod, build_method
from hf_mmbalance.console import say, with_flags
from hf_mmbalance.data import load_clips
from hf_mmbalance.data.clips import SPLITS, ClipSplits
from hf_mmbalance.data.corruptions import ClipsCorruptedByEpoch
from hf_mmbalance.decision.fits import fit_prior
from hf_mmbalance.decision.results import chance_notes, mean_weights, render_rows, rows_of, write_outputs
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.hub.errors import HubError, explain_hub_errors
from hf_mmbalance.hub.model_card import pinned_revision, write_card
from hf_mmbalance.hub.model_push import prepare_repo
from hf_mmbalance.processes import LOCK, call_in_main_process, local_main_process_first, lock_folder
from hf_mmbalance.provenance import base_model, provenance, versions
from hf_mmbalance.training.arguments import (
    MMBalanceTrainingArguments,
    ModelArguments,
    RunArguments,
    option_names,
    parse_arguments,
)
from hf_mmbalance.training.build import build_model_and_processor, frozen_notes, spec_augment, tower_names
from hf_mmbalance.training.curves import write_curves
from hf_mmbalance.training.decision_layer import apply_head, corruption_plan
from hf_mmbalance.training.frozen import FEATURES, frozen_clips, stored_clips
from hf_mmbalance.training.interruption import Interrupted, StopOnSignal
from hf_mmbalance.training.resuming import (
    EarlyStopping,
    KeepOrigin,
    is_complete,
    last_complete_checkpoint,
    resume_command,
    train_command,
)
from hf_mmbalance.training.run_log import check_trackers, final_values
from hf_mmbalance.training.trainer import MMBalanceTrainer


logger = logging.get_logger(__name__)

SMALL_MODEL = 5_000_000  # parameters
REPORTED_SPLITS = ("validation", "test")
RESUME_LAST = (True, "true", "True")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train with the given command-line arguments; see `python train.py --help`.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: if arguments or data cannot be used; nothing is written then.
    """
    return run(parse_arguments(argv))


def run(arguments: RunArguments) -> dict[str, Any]:
    """Load clips, build and train the model, evaluate it (validation, test), and write all to the output folder."""
    training = arguments.training
    check_trackers(list(training.report_to or []))
    balancing = _balancing(arguments)
    checkpoint = choose_output_dir(arguments)
    if training.push_to_hub:
        training.hub_model_id = call_in_main_process(
            lambda: _open_repo(training)
        )  # before hours of training, not after
    set_seed(training.seed)
    with local_main_process_first(), explain_hub_errors("reading clips"):
        clips = load_run_clips(arguments)
    kept = KeepOrigin(clips, arguments, checkpoint)
    callbacks: list[TrainerCallback] = [kept]
    model, processor = build_model_and_processor(arguments.model, clips, seed=training.seed)
    augment = spec_augment(arguments.model, processor, training.seed)
    limit_cpu_threads(model)
    clips = frozen_clips(clips, model, processor, arguments)
    if training.process_index == 0:
        origin = origin_of(arguments, clips)
        _announce(clips, model, frozen_notes(arguments.model, training.learning_rate))
        if kept.changes:
            logger.warning("note: resumed with changed options: %s", "; ".join(kept.changes))
    if training.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(training.early_stopping_patience))
    trainer = MMBalanceTrainer(
        model,
        training,
        clips,
        processor,
        augment=augment,
        decision=arguments.decision,
        balancing=balancing,
        callbacks=callbacks,
    )
    folder = Path(str(training.output_dir))
    with lock_folder(folder):
        _train(trainer, checkpoint, arguments)
        trainer.save_model(_internal_call=True)  # an internal call does not push: there is no card yet
    results, table = evaluate_final_model(trainer, clips, arguments)
    trainer.log(final_values(results["rows"]))
    if trainer.is_world_process_zero():
        processor.save_pretrained(str(folder))
        results |= {"provenance": origin, "resumed_with": kept.changes}
        write_outputs(folder, results, table)
        write_curves(trainer.state.log_history, folder / "curves.png")
        say(render(results, clips))
        logger.warning("everything is in %s", folder)
        if training.push_to_hub:
            _push(trainer, folder, str(training.hub_model_id))
    return results


def _train(trainer: MMBalanceTrainer, checkpoint: str | None, arguments: RunArguments) -> None:
    """Train; if a signal stops the run, log how to resume it."""
    try:
        with StopOnSignal(trainer):
            trainer.train(resume_from_checkpoint=checkpoint)
    except Interrupted as stopped:
        if trainer.is_world_process_zero():
            count = arguments.training.world_size
            same = f" (launched as before: {count} processes)" if count > 1 else ""
            logger.warning("%s; resume with%s\n%s", stopped, same, resume_command(arguments))
        raise


def _balancing(arguments: RunArguments) -> BalancingMethod | None:
    name, options = arguments.model.balancing, arguments.model.balancing_options
    assert not isinstance(options, str)  # read as JSON when the arguments were
    if name is None and options is not None:
        raise ValueError("--balancing_options needs --balancing: name the method")
    return None if name is None else build_method(name, options)


def load_run_clips(arguments: RunArguments) -> ClipSplits:
    """Load the clips, with train corruptions applied if requested, or the stored features if there are embeddings."""
    if arguments.data.embeddings is not None:
        return stored_clips(arguments)
    clips = load_clips(arguments.data.dataset, **dataclasses.asdict(arguments.source))
    plan = corruption_plan(arguments.data.train_corruptions, seed=arguments.training.seed)
    if plan is not None:
        clips.splits["train"] = ClipsCorruptedByEpoch(clips.splits["train"], plan)
    return clips


def origin_of(arguments: RunArguments, clips: ClipSplits) -> dict[str, Any]:
    """Return the data, base models, command and code of a run, for its results and its card."""
    return provenance(
        clips,
        arguments.source,
        base_models(arguments.model),
        train_command(arguments.argv),
        arguments.training.world_size,
    )


def base_models(model: ModelArguments) -> list[dict[str, str | None]]:
    """Describe the pretrained towers (or the trained model that training started from), with commits on the Hub."""
    if model.model_name_or_path is not None:
        return [base_model("whole", model.model_name_or_path, None)]
    return [base_model(modality, tower.name, tower.revision) for modality, tower in tower_names(model).items()]


def _open_repo(training: MMBalanceTrainingArguments) -> str:
    name = training.hub_model_id or Path(str(training.output_dir)).absolute().name
    return prepare_repo(name, private=training.hub_private_repo, revision=training.hub_revision)


def _push(trainer: MMBalanceTrainer, folder: Path, repo_id: str) -> None:
    """Push the finished run with its card.

    Raises:
        HubError: if pushing fails; the run is complete in its folder, and the message says how to push it from there.
    """
    write_card(folder, repo_id)
    try:
        commit = trainer.push_to_hub()
    except HubError as error:
        raise HubError(
            f"{error}\nThe run is complete in {folder}: `mmbalance push {folder} {repo_id}` pushes it."
        ) from error
    assert commit is not None  # this is the main process
    logger.warning("pushed to %s, revision %s", commit.repo_url.url, pinned_revision(folder))


def limit_cpu_threads(model: torch.nn.Module) -> None:
    """On a CPU, run small towers on one thread unless `OMP_NUM_THREADS` says otherwise.

    Their operations are too short to split: threads would wait for each other, on a busy machine most of the time.
    """
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL
    if small and not torch.accelerator.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def choose_output_dir(arguments: RunArguments) -> str | None:
    """Choose the run's folder (the same in every process) and the checkpoint to resume from.

    Raises:
        ValueError: if the folder holds another run, or there is nothing to resume from.
    """
    training = arguments.training
    training.output_dir, checkpoint = call_in_main_process(lambda: _settle(arguments))
    # Trackers that close their run when training ends find it again by its name, to log the final table.
    training.run_name = training.run_name or Path(training.output_dir).name
    return checkpoint


def _settle(arguments: RunArguments) -> tuple[str, str | None]:
    training = arguments.training
    resume = training.resume_from_checkpoint
    resume = None if resume in (False, "false", "False") else resume
    if not training.output_dir:
        if resume in RESUME_LAST:
            raise ValueError("--resume_from_checkpoint true needs --output_dir: the folder of the run to resume")
        name = Path((arguments.data.embeddings or arguments.data.dataset).rstrip("/")).stem or "clips"
        training.output_dir = f"outputs/{name}-{time.strftime('%Y%m%d-%H%M%S')}-s{training.seed}"
    folder = Path(str(training.output_dir))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output folder {folder} is a file: choose a different --output_dir")
    if resume in RESUME_LAST:
        checkpoint = last_complete_checkpoint(folder)
        if checkpoint is None:
            raise ValueError(f"nothing to resume from: {folder} has no complete checkpoint; remove the option")
        return str(folder), str(checkpoint)
    named = None if resume is None else Path(str(resume))
    if named is not None and not is_complete(named):
        raise ValueError(f"{named} is not a complete checkpoint of a run: it has no readable trainer_state.json")
    goes_on = named is not None and named.resolve().parent == folder.resolve()
    if not goes_on and folder.is_dir() and not all(map(_left_before_a_checkpoint, folder.iterdir())):
        raise ValueError(
            f"output folder {folder} holds another run: choose a new --output_dir, or resume that run with"
            " --resume_from_checkpoint true"
        )
    return str(folder), None if named is None else str(named)


def _left_before_a_checkpoint(path: Path) -> bool:
    """Return True if a run that ended before its first complete checkpoint left this path, which a new run may use."""
    # `embed` reuses the features that fit; `runs` belongs to TensorBoard.
    half_written = path.name.startswith("checkpoint-") and not is_complete(path)
    return half_written or path.name in (LOCK, FEATURES, "runs")


def _announce(clips: ClipSplits, model: Any, notes: list[str]) -> None:
    sizes = ", ".join(f"{split} {len(part)}" for split, part in clips.splits.items())
    logger.warning("%s: %d classes; clips: %s", clips.name, len(clips.classes), sizes)
    for note in clips.notes + notes:
        logger.warning("note: %s", with_flags(note, option_names()))
    logger.warning("model: %.2f M parameters, fusion head %r", model.num_parameters() / 1e6, model.config.fusion)


def evaluate_final_model(
    trainer: MMBalanceTrainer, clips: ClipSplits, arguments: RunArguments
) -> tuple[dict[str, Any], DecisionTable]:
    """Run the final model over every split (test for the first time) and compute the results."""
    tables = dict(trainer.fit_tables)
    for split, part in clips.splits.items():
        if len(part) and split not in tables:
            tables[split] = trainer.predict_table(part, split)
    reported = [split for split in REPORTED_SPLITS if split in tables]
    last = tables[reported[-1]]
    allocation = trainer.allocation
    prior = fit_prior(tables["train"].labels, len(clips.classes)) if allocation is None else np.log(allocation.prior_)
    weights = apply_head(trainer.accelerator.unwrap_model(trainer.model).fusion, last).modality_weights
    rows = [row for split in reported for row in rows_of(tables[split], split, prior)]
    chosen = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint
    results = {
        "dataset": clips.name,
        "n": len(last.labels),
        "classes": list(clips.classes),
        "modalities": list(last.modalities),
        "bayes_accuracy": None if clips.bayes is None else float(clips.bayes.accuracy),
        "ci_unit": rows[-1]["ci_unit"],
        "rows": rows,
        "weights": mean_weights(None if weights is None else weights.double().cpu().numpy(), last),
        "notes": chance_notes([row for row in rows if row["split"] == reported[-1]], last),
        "n_per_split": {split: len(part) for split, part in clips.splits.items()},
        "fusion": trainer.model.config.fusion,
        "decision": None if allocation is None else allocation.describe(),
        "selected_by": f"validation {trainer.args.metric_for_best_model}" if chosen else None,
        "best_checkpoint": chosen or None,
        "arguments": arguments.to_dict(),
        "versions": versions(),
    }
    if not arguments.decision.save_features:
        for table in tables.values():
            table.features = {}
    return results, DecisionTable.concatenate([tables[split] for split in SPLITS if split in tables])


def render(results: dict[str, Any], clips: ClipSplits) -> str:
    """Format the text printed at the end: rows of the last split, share of the optimum, the decision layer in use."""
    split = results["rows"][-1]["split"]
    rows = [row for row in results["rows"] if row["split"] == split]
    parts = [f"\n{results['dataset']}, {split} split", render_rows(rows)]
    if clips.bayes is not None:
        fused, bayes = rows[-1]["accuracy"], results["bayes_accuracy"]
        parts.append(f"best possible (Bayes) accuracy {100 * bayes:.1f}: the fusion reaches {fused / bayes:.3f} of it")
    parts += [f"note: {note}" for note in results["notes"]]
    if results["decision"] is not None:
        parts += [*results["decision"]["lines"], *(f"note: {note}" for note in results["decision"]["notes"])]
    return "\n".join(parts)
