"""The Trainer: towers learn from train clips; the decision layer is fitted on calibration clips after every epoch."""

from __future__ import annotations

import errno
import math
import shutil
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from hf_mmbalance.balancing import BALANCING_METHODS, BalancingMethod
from hf_mmbalance.console import UserError
from hf_mmbalance.data.clips import ClipDataset, ClipsOfEpoch, ClipSplits
from hf_mmbalance.data.sources.hub import HubOptions, clips_of
from hf_mmbalance.data.streaming import EpochOrder
from hf_mmbalance.decision.results import plain_sum
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.hub.checkpoint_push import CheckpointPushes
from hf_mmbalance.hub.model_push import prepare_repo, push_saved
from hf_mmbalance.metrics import measures
from hf_mmbalance.model.configuration_mmbalance import MMBalanceConfig
from hf_mmbalance.model.heads_mmbalance import build_fusion
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.processes import call_in_main_process
from hf_mmbalance.progress import bar, without_transformers_bars
from hf_mmbalance.training.batches import ClipCollator, KeyedClips, SpecAugment
from hf_mmbalance.training.checks import (
    absent_modalities,
    check_classes,
    check_loss_weights,
    check_metric,
    check_splits,
)
from hf_mmbalance.training.decision_layer import DecisionArguments, apply_head, calibration_draws, fit
from hf_mmbalance.training.run_log import LossParts, decision_values, learning_rates, use_readable_lines


if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from hf_mmbalance.decision import Allocation

logger = logging.get_logger(__name__)

BALANCING_STATE = "balancing.pt"


class FollowEpochs(TrainerCallback):
    """Sets the epoch of the clip order, and has the decision layer fitted at the last step of each epoch.

    The epoch is set on the order directly: in a run resumed in the middle of an epoch, accelerate wraps the sampler
    one level deeper than its `set_epoch` reaches. The fit happens at the last step, not at the end of the epoch: a
    checkpoint that `save_steps` writes at that step must contain it, since a run resumed from it starts with the next
    epoch. `max_steps` also ends an epoch: its evaluation must not use the fit of the epoch before.
    """

    def __init__(self, trainer: MMBalanceTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
        if best.is_dir():  # a resumed run whose folder was moved, or is given relative to a different folder
            state.best_model_checkpoint = str(best)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.order.set_epoch(state.global_step // self.trainer.steps_per_epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ends = state.global_step % self.trainer.steps_per_epoch == 0 or state.global_step == state.max_steps
        if self.trainer.fits and ends:
            self.trainer.fit_decision_layer()


class MMBalanceTrainer(Trainer):
    """Trainer for [`MMBalanceForAudioVisualClassification`] on clips.

    The towers learn from the train split. A fusion head that is `fitted` is fitted on the calibration split: after
    every epoch with only the parameters that every such head has, and after training with every rung allowed. Any
    other head learns together with the towers. `evaluate` uses the validation split.

    Args:
        model: The model, or None if `model_init` is given as a keyword argument.
        args: Training arguments, transformers' own or [`MMBalanceTrainingArguments`].
        clips: The dataset: what `load_clips` returns, or a `datasets.DatasetDict` with a label column and columns of
            audio, images or video (read as with `HubOptions()`; splits that it lacks are taken from train). `train`
            and `validation` are required, and `calibration` for fitted heads.
        processor: Processor of the model, saved with every checkpoint.
        augment: Masks for the spectrograms of train clips.
        decision: Options for fitting the decision layer.
        balancing: Balancing method from `build_method`, which decides how the towers learn; None for the loss with
            the config's weights.
        **kwargs: As in [`transformers.Trainer`].

    Raises:
        ValueError: if the model's classes are not those of the clips, a required split is missing, or the model is to
            be selected by a measure that `evaluate` does not return.
    """

    eval_dataset: ClipDataset
    model: MMBalanceForAudioVisualClassification
    hub_model_id: Any

    def __init__(
        self,
        model: MMBalanceForAudioVisualClassification | None = None,
        args: TrainingArguments | None = None,
        clips: ClipSplits | Mapping[str, Any] | None = None,
        processor: MMBalanceProcessor | None = None,
        augment: SpecAugment | None = None,
        decision: DecisionArguments | None = None,
        balancing: BalancingMethod | None = None,
        **kwargs: Any,
    ):
        self.balancing = balancing
        if not isinstance(clips, (ClipSplits, Mapping)) or processor is None:
            raise ValueError("give clips (what hf_mmbalance.load_clips returns, or a DatasetDict) and the processor")
        if not isinstance(balancing, BalancingMethod | None):
            raise ValueError(f"balancing={balancing!r}: give a method, such as build_method('ogm')")
        for name in ("compute_metrics", "preprocess_logits_for_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} would not be called: compute your measures from predict_table(clips, split)")
        if not isinstance(clips, ClipSplits):
            clips = clips_of(clips, HubOptions(sampling_rate=processor.audio_sampling_rate))
            processor.reading = clips.reading.to_dict() if clips.reading is not None else processor.reading
        check_splits(clips, "train", "validation")
        self.clips, self.processor = clips, processor
        self.decision = decision or DecisionArguments()
        self.absent = absent_modalities(clips)
        self.allocation: Allocation | None = None
        self.fit_tables: dict[str, DecisionTable] = {}
        #: Duration of the longest clip predicted so far.
        self.longest_seconds = 0.0
        super().__init__(
            model=model,
            args=args,
            train_dataset=KeyedClips(clips.splits["train"], indexed=balancing is not None),
            eval_dataset=clips.splits["validation"],
            data_collator=ClipCollator(processor, augment),
            **kwargs,
        )
        self.loss_parts = LossParts()
        use_readable_lines(self)
        if self.label_smoother is not None:
            raise ValueError(
                "label_smoothing_factor replaces the model's loss with one of the fused logits: use label_smoothing"
                " of the model's config instead"
            )
        check_classes(self.model.config, clips.classes)
        check_metric(self.args.metric_for_best_model, self.model.config.modalities)
        if self.fits:
            check_splits(clips, "calibration")
            self.calibration = calibration_draws(clips.splits["calibration"], self.decision, self.args.seed)
        elif self.decision.decision_rung != "auto":
            rung, head = self.decision.decision_rung, self.model.config.fusion
            raise ValueError(f"decision_rung={rung!r}: a {head!r} head is not fitted; use the fusion head 'adaptive'")
        if model is not None:  # a model from `model_init` has already been prepared
            self._prepare_model(model)
        self.add_callback(FollowEpochs(self))

    def call_model_init(self, trial: Any = None) -> Any:
        """Create the model like `Trainer`, then note which modalities no train clip has and attach the balancing."""
        model = super().call_model_init(trial)
        self._prepare_model(model)
        return model

    def _prepare_model(self, model: Any) -> None:
        self._note_untrained(model)
        needed = model.fusion.required_balancing
        if needed is not None and not isinstance(self.balancing, BALANCING_METHODS[needed]):
            raise ValueError(
                f"the fusion head {model.config.fusion!r} learns from its own loss: add --balancing {needed}"
            )
        if self.balancing is None:
            check_loss_weights(model)
        else:
            self.balancing.seed, self.balancing.num_clips = self.args.seed, len(self.clips.splits["train"])
            self.balancing.attach(model)

    def _note_untrained(self, model: Any) -> None:
        """Record in the config the modalities that the model never learns from; a saved model keeps those it knows."""
        config = model.config
        before = config.untrained_modalities if config.name_or_path else self.absent
        config.untrained_modalities = [name for name in self.absent if name in before]
        for name in config.untrained_modalities:
            logger.warning(
                "no train clip of %s has %s: the model will ignore it, and reject clips that have nothing else",
                self.clips.name, name,
            )  # fmt: skip

    @property
    def fits(self) -> bool:
        """True if the model's decision layer is fitted rather than trained."""
        return bool(self.accelerator.unwrap_model(self.model).fusion.fitted)

    def get_train_dataloader(self) -> DataLoader:
        """Return the train batches; the clips of an optimiser step depend only on seed, epoch and step.

        They stay the same if a step is split over processes or accumulated batches. The last step of an epoch is
        filled up with clips drawn a second time.
        """
        args = self.args
        size = self._train_batch_size
        step = size * args.world_size * args.gradient_accumulation_steps
        seed = args.data_seed if args.data_seed is not None else args.seed
        self.order = EpochOrder(self.train_dataset, seed=seed, fill=step)  # type: ignore[arg-type]  # has a length
        self.steps_per_epoch = len(self.order) // step
        return self.accelerator.prepare_data_loader(
            self._loader(self.train_dataset, sampler=self.order, batch_size=size)
        )

    def get_eval_dataloader(self, eval_dataset: ClipDataset | None = None) -> DataLoader:  # type: ignore[override]
        clips = KeyedClips(self.eval_dataset if eval_dataset is None else eval_dataset)
        return self.accelerator.prepare_data_loader(
            self._loader(clips, batch_size=self.args.per_device_eval_batch_size)
        )

    def _loader(self, dataset: Any, **options: Any) -> DataLoader:
        args = self.args
        return DataLoader(
            dataset,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_persistent_workers and args.dataloader_num_workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=_init_worker,
            # Its own generator: a pass over a loader must not advance the random state that dropout draws from.
            generator=torch.Generator(),
            **options,
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train like `Trainer`, then fit the decision layer for the weights that are kept, with every rung allowed."""
        output = super().train(*args, **kwargs)
        if self.fits:
            self.fit_tables = {
                "train": self.predict_table(self.clips.splits["train"], "train"),
                "calibration": self.predict_table(self.calibration, "calibration"),
            }
            if self.is_world_process_zero():
                logger.warning(
                    "fitting the decision layer on %d calibration rows", len(self.fit_tables["calibration"])
                )
            self.fit_decision_layer(DecisionTable.concatenate(list(self.fit_tables.values())), structure="any")
            head = self.accelerator.unwrap_model(self.model).fusion
            for table in self.fit_tables.values():
                table.references["fused"] = apply_head(head, table).logits.double().cpu().numpy()
        return output

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]  # the caller passes all by name
        """Run an epoch like `Trainer`, unless a resumed run has already ended by its steps or early stopping."""
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(**kwargs)

    def fit_decision_layer(self, table: DecisionTable | None = None, structure: str = "default") -> None:
        """Fit the decision layer in the main process and write it into the model of every process.

        Args:
            table: Calibration rows, and train rows for statistics of features. Default: the uncorrupted calibration
                clips, predicted by the current model.
            structure: "default", or "any" to allow parameters that not every adaptive head has.
        """
        if table is None:
            table = self.predict_table(self.clips.splits["calibration"], "calibration")
        chosen = call_in_main_process(lambda: fit(table, self.decision, structure))
        chosen.write_to(self.accelerator.unwrap_model(self.model))
        self.allocation = chosen
        if self.state.epoch is not None:
            head = self.accelerator.unwrap_model(self.model).fusion
            due = self.control.should_log  # the train loss may be due at this step, and self.log clears the flag
            self.log(decision_values(chosen, table, apply_head(head, table).logits.double().cpu().numpy()))
            self.control.should_log = due

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log like `Trainer`; an entry with the train loss also gets its parts, and learning rates that differ."""
        if "loss" in logs:
            logs = logs | self.loss_parts.take() | learning_rates(self.optimizer)
        super().log(logs, start_time)

    def evaluate(  # type: ignore[override]  # clips, not rows
        self,
        eval_dataset: ClipDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return accuracy and NLL of the fusion, and accuracy of each modality and of their plain sum."""
        table = self.predict_table(self.eval_dataset if eval_dataset is None else eval_dataset, "validation")
        metrics = _measures(table, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(  # type: ignore[override]  # clips, not rows
        self, test_dataset: ClipDataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Return the fused logits `(N, C)` and labels of clips, and the measures of `evaluate`."""
        table = self.predict_table(test_dataset, "test")
        return PredictionOutput(table.references["fused"], table.labels, _measures(table, metric_key_prefix))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss like `Trainer`, and keep its parts for the log."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.loss_parts.add(outputs)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run a step like `Trainer`; a balancing method acts on the gradients of a complete optimiser step."""
        balancing = self.balancing
        if balancing is not None:
            balancing.clip_index = inputs.pop("clip_index").to(self.args.device)
            balancing.progress = self.state.global_step / self.state.max_steps
            balancing.epoch = self.state.global_step // self.steps_per_epoch
        loss = super().training_step(model, inputs, num_items_in_batch)
        if balancing is not None and self.accelerator.sync_gradients:
            balancing.before_step()
        return loss

    def predict_table(self, clips: ClipDataset, split: str) -> DecisionTable:
        """Run the model over clips in all processes and gather the outputs; after training without autocast.

        Train clips are augmented as in training (epoch 0), since they show what is typical for the towers.

        Returns:
            Unimodal logits and features of every clip, in the order of `clips`; `reference.fused` holds the model's
            own fused logits. If `clips` holds corrupted versions (it has `clips` and `draws`), each row names the
            clip that it is a version of.

        Raises:
            ValueError: if logits are not finite, which means that training diverged.
        """
        outputs = self._run(ClipsOfEpoch(clips, 0) if split == "train" else clips, split)
        broken = ~np.isfinite(outputs["logits"]).all(axis=1)
        if broken.any():
            found = f"logits of {broken.sum()} of {len(clips)} {split} clips are not finite"
            if np.isfinite(outputs["modality_logits"]).all():
                raise ValueError(f"{found}, though each modality's are: the cause is in the fusion head")
            raise ValueError(f"training diverged: {found}; lower --learning_rate, or add warmup_steps")
        present = outputs["modality_mask"] != 0
        modalities = list(self.model.config.modalities)
        return DecisionTable(
            ids=list(clips.ids),
            groups=list(clips.groups),
            splits=[split] * len(clips),
            labels=np.asarray(clips.labels, dtype=np.int64),
            logits=np.where(present[..., None], outputs["modality_logits"].astype(np.float64), np.nan),
            classes=list(clips.classes),
            modalities=modalities,
            features={
                name: np.where(there[:, None], outputs[f"features.{name}"], np.nan)
                for name, there in zip(modalities, present.T, strict=True)
            },
            references={"fused": outputs["logits"].astype(np.float64)},
            known=np.array(self.model.config.known_classes),
            **{name: getattr(clips, name) for name in ("clips", "draws") if hasattr(clips, name)},
        )

    def _run(self, clips: ClipDataset, split: str) -> dict[str, np.ndarray]:
        model = self.model_wrapped if self.is_in_train else self._wrap_model(self.model, training=False)
        model.eval()
        forward: Any = model
        if not (self.is_in_train or self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # As in serving: in the precision of the weights, without the autocast that accelerate wraps around it.
            forward = partial(type(model).forward, model)
        names = [f"features.{modality}" for modality in self.model.config.modalities]
        head = self.accelerator.unwrap_model(self.model).fusion
        parts: dict[str, list[torch.Tensor]] = {}
        shown = self.is_world_process_zero() and not self.args.disable_tqdm
        for batch in bar(self.get_eval_dataloader(clips), desc=split, unit="batch", leave=False, disable=not shown):
            batch = self._prepare_inputs(batch)
            kept = {name: batch.pop(name) for name in ("clip_index", "clip_seconds")}
            batch.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = forward(**batch)
            kept |= {name: outputs[name] for name in ("logits", "modality_logits", "modality_mask")}
            kept |= dict(zip(names, head.features_read(outputs), strict=True))
            for name, values in self.accelerator.gather(kept).items():
                values = values.detach().cpu()
                parts.setdefault(name, []).append(values.float() if values.is_floating_point() else values)
        joined = {name: torch.cat(values).numpy() for name, values in parts.items()}
        self.longest_seconds = max(self.longest_seconds, float(joined.pop("clip_seconds").max()))
        # Clips up to this length are served in one piece, as here.
        self.processor.reading["longest_seconds"] = math.ceil(1000 * self.longest_seconds) / 1000
        # Accelerate repeats clips so that every process has equally many: keep one row for each clip, in order.
        _, first = np.unique(joined.pop("clip_index"), return_index=True)
        return {name: values[first] for name, values in joined.items()}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save like `Trainer`, but remove a checkpoint that cannot be written: a resumed run uses the one before."""
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            if not _disk_refused(error):
                raise
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(folder, ignore_errors=True)
            text = f"{folder} could not be written ({str(error).splitlines()[0]}): free disk space, then resume with"
            other = "(or give the last checkpoint there, and a different --output_dir)"
            raise UserError(f"{text} --resume_from_checkpoint true {other}") from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with without_transformers_bars():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.processor.save_pretrained(output_dir if output_dir is not None else self.args.output_dir)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, in the main process; this package pushes to it, one commit at a time."""
        if self.is_world_process_zero():
            name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = prepare_repo(name, private=private, revision=self.args.hub_revision, token=token)
            self.checkpoint_pushes = CheckpointPushes(self.hub_model_id, self.args)

    def push_to_hub(  # type: ignore[override]  # without Trainer's model card
        self, commit_message: str = "Upload trained model", **kwargs: Any
    ) -> CommitInfo | None:
        """Push the output folder with its card in one commit, from the main process only."""
        if self.hub_model_id is None:
            self.init_hf_repo()
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return push_saved(
            Path(str(self.args.output_dir)),
            self.hub_model_id,
            message=commit_message,
            private=self.args.hub_private_repo,
            revision=kwargs.get("revision") or self.args.hub_revision,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero():
            self.checkpoint_pushes.add(Path(checkpoint_folder), f"Training in progress, step {self.state.global_step}")

    def _finish_current_push(self) -> None:
        if self.args.push_to_hub and self.is_world_process_zero():
            self.checkpoint_pushes.finish()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load like `Trainer`, after giving a fitted head the structure that it has in the checkpoint."""
        own = self.accelerator.unwrap_model(self.model)
        options = MMBalanceConfig.from_pretrained(resume_from_checkpoint).fusion_options
        if own.fusion.fitted and options != own.config.fusion_options:
            own.config.fusion_options = options
            own.fusion = build_fusion(own.config, own.fusion.feature_sizes).to(own.device)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.balancing is not None and self.args.should_save:
            torch.save(self.balancing.state_dict(), Path(output_dir) / BALANCING_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.balancing is None:
            return
        file = Path(checkpoint) / BALANCING_STATE
        if not file.is_file():
            raise ValueError(
                f"{checkpoint} has no {BALANCING_STATE}: the run was started without a balancing method, or with"
                " save_only_model"
            )
        self.balancing.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Process 0 writes trainer_state.json next, which marks a complete checkpoint: no other may still be writing.
        self.accelerator.wait_for_everyone()


def _measures(table: DecisionTable, prefix: str) -> dict[str, float]:
    """Return accuracy and NLL of the fusion, and accuracy of each modality and of their plain sum."""
    fused = table.references["fused"]
    nll = measures.nll(fused, table.labels)
    found = {
        "loss": nll,
        "nll": nll,
        "accuracy": measures.accuracy(fused, table.labels),
        "accuracy_sum": measures.accuracy(plain_sum(table), table.labels),
    }
    for index, modality in enumerate(table.modalities):
        present = table.mask[:, index]
        if present.any():
            found[f"accuracy_{modality}"] = measures.accuracy(table.log_probs[present, index], table.labels[present])
    return {f"{prefix}_{name}": value for name, value in found.items()}


def _disk_refused(error: Exception) -> bool:
    """Return True if a file could not be written; safetensors and torch.save raise errors of their own for it."""
    if isinstance(error, OSError):  # errors of a push are OSErrors without a number
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    return any(words in str(error) for words in ("I/O error", "StreamWriter", "unexpected pos"))


def _init_worker(worker_id: int) -> None:
    # A signal to the whole process group is handled by the trainer, and workers end with the trainer.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
