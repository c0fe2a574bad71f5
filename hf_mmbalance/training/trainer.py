"""The Trainer: mixed batches, an own rate for the allocation, capability measured on the calibration split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hf_mmbalance.data.clips import ClipDataset, ClipSplits
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.hub.model_push import prepare_repo, push_saved
from hf_mmbalance.metrics import measures
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.processing_mmbalance import MMBalanceProcessor
from hf_mmbalance.training.arguments import MMBalanceTrainingArguments
from hf_mmbalance.training.batches import ClipCollator, MixedBatches, SpecAugment, TrainingClips
from hf_mmbalance.training.pushing import CheckpointPushes


if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class MeasureCapability(TrainerCallback):
    """After every epoch, measure each modality's capability on the calibration split and tell the adaptive head.

    At the epoch's last step, not at its end: a checkpoint that `save_steps` writes there must hold the new numbers,
    since a run resumed from it starts with the next epoch.
    """

    def __init__(self, trainer: MMBalanceTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps = len(kwargs["train_dataloader"]) // args.gradient_accumulation_steps
        if state.global_step % steps == 0:
            self.trainer.measure_capability()


class MMBalanceTrainer(Trainer):
    """Trains an [`MMBalanceForAudioVisualClassification`] on clips.

    Towers learn from the train split; the parameters of a head that learns from calibration clips learn from the
    calibration split only, in the same batches. `evaluate` reads the validation split.

    Args:
        model: The model.
        args: Training arguments.
        clips: The dataset; its `train` and `validation` splits are required, `calibration` by adaptive heads.
        processor: Saved with every checkpoint.
        augment: Masks for the spectrograms of train clips.
        **kwargs: As [`transformers.Trainer`].

    Raises:
        ValueError: if the model's classes are not those of the clips, a split that is needed is missing, or the
            model is to be selected by a measure that `evaluate` does not give.
    """

    args: MMBalanceTrainingArguments
    train_dataset: TrainingClips
    eval_dataset: ClipDataset
    model: MMBalanceForAudioVisualClassification
    hub_model_id: Any

    def __init__(
        self,
        model: MMBalanceForAudioVisualClassification,
        args: MMBalanceTrainingArguments,
        clips: ClipSplits,
        processor: MMBalanceProcessor,
        augment: SpecAugment | None = None,
        **kwargs: Any,
    ):
        self.clips, self.processor = clips, processor
        self.learns_from_calibration = bool(model.fusion.learns_from_calibration)
        check_classes(model.config, clips.classes)
        needed = ["train", "validation"] + ["calibration"] * self.learns_from_calibration
        missing = [split for split in needed if not len(clips.splits.get(split, ()))]
        if missing:
            raise ValueError(f"dataset {clips.name!r} has no clips in split(s) {', '.join(missing)}")
        check_metric(args.metric_for_best_model, model.config.modalities)
        calibration = clips.splits["calibration"] if self.learns_from_calibration else None
        super().__init__(
            model=model,
            args=args,
            train_dataset=TrainingClips(clips.splits["train"], calibration),
            eval_dataset=clips.splits["validation"],
            data_collator=ClipCollator(processor, augment),
            **kwargs,
        )
        if self.measures_capability:
            self.add_callback(MeasureCapability(self))

    def get_train_dataloader(self) -> DataLoader:
        dataset = self.train_dataset
        sampler = MixedBatches(
            len(dataset.train),
            len(dataset.calibration) if dataset.calibration is not None else 0,
            self.args.per_device_train_batch_size,
            parts=self.args.world_size * self.args.gradient_accumulation_steps,
            calibration_per_step=self.args.calibration_per_step if self.learns_from_calibration else None,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )
        return self.accelerator.prepare_data_loader(self._loader(dataset, batch_sampler=sampler))

    def get_eval_dataloader(self, eval_dataset: ClipDataset | None = None) -> DataLoader:  # type: ignore[override]
        clips = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.accelerator.prepare_data_loader(
            self._loader(_Indexed(clips), batch_size=self.args.per_device_eval_batch_size)
        )

    def _loader(self, dataset: Any, **options: Any) -> DataLoader:
        args = self.args
        return DataLoader(
            dataset,
            collate_fn=self.data_collator if isinstance(dataset, TrainingClips) else _IndexedCollator(self.processor),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_persistent_workers and args.dataloader_num_workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=_init_worker,
            # A generator of its own: a pass over a loader must not move the random state that dropout draws from.
            generator=torch.Generator(),
            **options,
        )

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """As the Trainer's; what learns from calibration clips has its own learning rate and no weight decay."""
        if self.optimizer is None:
            model = self.model if model is None else model
            own = parameters_of_fusion(model) if self.learns_from_calibration else set()
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[str, list[torch.nn.Parameter]] = {"decayed": [], "plain": [], "allocation": []}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    kind = "allocation" if name in own else "decayed" if name in decayed else "plain"
                    groups[kind].append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)  # type: ignore[arg-type]
            settings = {
                "decayed": {"weight_decay": self.args.weight_decay},
                "plain": {"weight_decay": 0.0},
                "allocation": {"weight_decay": 0.0, "lr": self.args.allocation_learning_rate},
            }
            self.optimizer = optimizer_class(
                [{"params": params, **settings[name]} for name, params in groups.items() if params], **options
            )
        return self.optimizer

    def evaluate(  # type: ignore[override]  # clips, not rows
        self,
        eval_dataset: ClipDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Accuracy and negative log-likelihood of the fusion, of each modality and of their plain sum."""
        _, table = self.decide(self.eval_dataset if eval_dataset is None else eval_dataset, "validation")
        fused = table.references["fused"]
        nll = measures.nll(fused, table.labels)
        metrics = {
            "loss": nll,
            "nll": nll,
            "accuracy": measures.accuracy(fused, table.labels),
            "accuracy_sum": measures.accuracy(uniform_sum(table), table.labels),
        }
        for index, modality in enumerate(table.modalities):
            present = table.mask[:, index]
            if present.any():
                metrics[f"accuracy_{modality}"] = measures.accuracy(
                    table.logits[present, index], table.labels[present]
                )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def decide(self, clips: ClipDataset, split: str) -> tuple[dict[str, np.ndarray], DecisionTable]:
        """Run the model over clips, in every process, and gather.

        Returns:
            The outputs `logits` `(N, C)`, `modality_logits` `(N, M, C)`, `modality_mask` `(N, M)` and, where the
            head has weights, `modality_weights` `(N, M, C)`; and the decision table, whose `reference.fused` are the
            fused logits. Rows are in the order of `clips`.

        Raises:
            ValueError: if logits are not finite, which is what training that diverged leaves.
        """
        outputs = self._run(clips)
        broken = ~np.isfinite(outputs["logits"]).all(axis=1)
        if broken.any():
            raise ValueError(
                f"training diverged: logits of {broken.sum()} of {len(clips)} {split} clips are not finite; lower"
                " --learning_rate or --allocation_learning_rate, or add warmup_steps"
            )
        modality_logits = outputs["modality_logits"].astype(np.float64)
        modality_logits[outputs["modality_mask"] == 0] = np.nan
        table = DecisionTable(
            ids=list(clips.ids),
            groups=list(clips.groups),
            splits=[split] * len(clips),
            labels=np.asarray(clips.labels, dtype=np.int64),
            logits=modality_logits,
            classes=list(clips.classes),
            modalities=list(self.model.config.modalities),
            features=self._features(outputs),
            references={"fused": outputs["logits"].astype(np.float64)},
            kind="logits",
        )
        return outputs, table

    def _feature_names(self) -> list[str]:
        return [f"features.{modality}" for modality in self.model.config.modalities]

    def _features(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the towers made of each clip, where it was asked for; NaN where the modality is missing."""
        if not self.args.save_features:
            return {}
        present = outputs["modality_mask"].T != 0
        return {
            name.removeprefix("features."): np.where(there[:, None], outputs[name], np.nan)
            for name, there in zip(self._feature_names(), present, strict=True)
        }

    @property
    def measures_capability(self) -> bool:
        """Whether the head is told what each modality can do; a head of the user's own may do without."""
        return self.learns_from_calibration and hasattr(self.accelerator.unwrap_model(self.model).fusion, "capability")

    def measure_capability(self) -> None:
        """Write recall above chance of every modality and class on the calibration split into the head's buffer."""
        _, table = self.decide(self.clips.splits["calibration"], "calibration")
        worth = measures.capability(table.logits, table.labels)
        buffer = self.accelerator.unwrap_model(self.model).fusion.capability
        buffer.copy_(torch.as_tensor(np.nan_to_num(worth), dtype=buffer.dtype))

    def _run(self, clips: ClipDataset) -> dict[str, np.ndarray]:
        model = self.model_wrapped if self.is_in_train else self._wrap_model(self.model, training=False)
        model.eval()
        parts: dict[str, list[torch.Tensor]] = {}
        for batch in self.get_eval_dataloader(clips):
            batch = self._prepare_inputs(batch)
            index = batch.pop("clip_index")
            batch.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**batch)
            kept = {name: outputs[name] for name in OUTPUTS if outputs.get(name) is not None}
            if self.args.save_features:
                kept |= dict(zip(self._feature_names(), outputs["modality_features"], strict=True))
            for name, values in self.accelerator.gather({"clip_index": index, **kept}).items():
                values = values.detach().cpu()
                parts.setdefault(name, []).append(values.float() if values.is_floating_point() else values)
        joined = {name: torch.cat(values).numpy() for name, values in parts.items()}
        # Accelerate repeats clips so that every process has as many: one row for each clip, in order.
        _, first = np.unique(joined.pop("clip_index"), return_index=True)
        return {name: values[first] for name, values in joined.items()}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.processor.save_pretrained(output_dir if output_dir is not None else self.args.output_dir)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, in the main process; from there on it is pushed by this package (one commit a time)."""
        if self.is_world_process_zero():
            name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = prepare_repo(name, private=private, revision=self.args.hub_revision, token=token)
            self.checkpoint_pushes = CheckpointPushes(self.hub_model_id, self.args)

    def push_to_hub(  # type: ignore[override]  # no model card of Trainer's
        self, commit_message: str = "Upload trained model", **kwargs: Any
    ) -> CommitInfo | None:
        """Push what is in the output folder, with its card, in one commit; from the main process only."""
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

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Process 0 writes trainer_state.json next, the mark of a complete checkpoint: no other may still be writing.
        self.accelerator.wait_for_everyone()


OUTPUTS = ("logits", "modality_logits", "modality_mask", "modality_weights")


class _Indexed(torch.utils.data.Dataset):
    """Clips with their place, so that gathered rows can be put in order."""

    def __init__(self, clips: ClipDataset):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.clips[index], "clip_index": index}


class _IndexedCollator(ClipCollator):
    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(examples)
        batch["clip_index"] = torch.tensor([example["clip_index"] for example in examples])
        return batch


def _init_worker(worker_id: int) -> None:
    torch.set_num_threads(1)


def parameters_of_fusion(model: torch.nn.Module) -> set[str]:
    """Names, as `model` has them (wrapped or not), of the parameters of its fusion head."""
    names = (name for name, _ in model.named_parameters())
    return {name for name in names if WRAPPERS.sub("", name).startswith("fusion.")}


WRAPPERS = re.compile(r"^((module|_orig_mod|_fsdp_wrapped_module)\.)*")


def check_metric(name: str | None, modalities: list[str] | tuple[str, ...]) -> None:
    """The measure that selects the model must be one that `evaluate` gives; better now than after an epoch.

    Raises:
        ValueError: naming those there are.
    """
    known = ["nll", "loss", "accuracy", "accuracy_sum", *(f"accuracy_{modality}" for modality in modalities)]
    if name is not None and name.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model={name!r} is unknown: choose one of {', '.join(known)}")


def uniform_sum(table: DecisionTable) -> np.ndarray:
    """Unweighted sum of log-probabilities over the modalities present `(N, C)`."""
    return np.where(table.mask[..., None], measures.log_softmax(np.nan_to_num(table.logits)), 0.0).sum(1)


def check_classes(config: Any, classes: list[str]) -> None:
    """A model and a dataset must name the same classes in the same order.

    Raises:
        ValueError: naming the first that differs.
    """
    named = [config.id2label[index] for index in range(config.num_labels)]
    if named != list(classes):
        pairs = zip(named + ["(none)"] * len(classes), list(classes) + ["(none)"] * len(named), strict=False)
        ours, theirs = next((a, b) for a, b in pairs if a != b)
        raise ValueError(
            f"the model has other classes than the dataset: {ours!r} where the dataset has {theirs!r}"
            f" ({len(named)} and {len(classes)} classes); use a model trained on these classes, or start a new one"
        )
