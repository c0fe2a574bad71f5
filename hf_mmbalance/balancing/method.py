"""The hook that every balancing method implements: called with each training batch, and once per optimiser step.

```python
method = build_method("ogm", {"alpha": 0.5})
method.attach(model)                       # before the optimiser is built and the model is wrapped
...
accelerator.backward(model(**batch).loss)  # the model calls the method, which returns the loss
if accelerator.sync_gradients:
    method.before_step()                   # after the backward of a step's last batch, before clipping
```

**Exactness.** What a method reads from a batch is summed over the accumulated batches and over processes
([`BalancingMethod.collect`]) before the method acts, so that splitting a step does not change the result. The method
changes the parameters' gradients in `before_step`, when they are already summed over accumulated batches and
processes. These gradients may carry the loss scale of mixed precision; `loss_scale` is this factor, read from the
gradients of the losses themselves. The scaler sees non-finite values written here, and then skips the step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from hf_mmbalance.balancing.processes import gather_rows, sum_over_processes, world_size
from hf_mmbalance.model.modeling_mmbalance import MMBalanceForAudioVisualClassification
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


logger = logging.get_logger(__name__)

PLAIN = "train in plain processes (accelerate_configs/multi_gpu.yaml)"
#: Attributes that `attach` and the training loop set on a method.
SET_ON_METHODS = ("model", "step", "state", "seed", "epoch", "progress", "clip_index", "num_clips", "fused_weight",
                  "unimodal_weight")  # fmt: skip


class _SetByLoop:
    """Attribute that the training loop sets on a method before each batch; reading it unset raises an error.

    An instance's own attribute takes precedence over a descriptor without `__set__`, so that assignment just works.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, method: BalancingMethod | None, owner: type) -> Any:
        if method is None:
            return self
        raise ValueError(f"{owner.__name__} reads {self.name}: set it before each batch, as the Trainer does")


class BalancingMethod:
    """Base class of all balancing methods; by itself it trains with the loss weights below.

    Your own method subclasses it, accepts its options as keyword arguments of `__init__`, and overrides `loss`,
    `modulate` or both.

    Raises:
        ValueError: when a subclass is defined, if an option has the name of an attribute that training sets.
    """

    #: Weights of the losses, used if the model's config sets none.
    fused_loss_weight: float = 1.0
    unimodal_loss_weight: float = 0.0
    #: Fusion head that the method is defined for; `None` for any.
    fusion: str | None = None
    #: The method needs unimodal logits that are parts of the decision and whose losses reach the towers.
    needs_split = True
    #: The method compares one modality with the other; it is not defined for more than two.
    two_modalities = False
    #: The method reads complete gradients instead of only scaling them: not defined if processes hold parts of them.
    needs_whole_gradients = False
    #: The method identifies clips by their index in the train split: `num_clips` and `clip_index` must be set.
    needs_clip_index = False
    #: The method decides from, or acts on, pooled features: not defined if vision's logits come from every frame.
    needs_pooled_features = False

    model: MMBalanceForAudioVisualClassification
    #: Weights of the losses in use, from the config.
    fused_weight: float
    unimodal_weight: float
    #: Fraction of the training that is done, in [0, 1); set by the training loop, for methods with a schedule.
    progress: float = _SetByLoop()  # type: ignore[assignment]
    #: Number of epochs done; set by the loop, for methods that compare epochs.
    epoch: int = _SetByLoop()  # type: ignore[assignment]
    #: Index in the train split of each clip of the next batch, `(B,)`; set by the loop.
    clip_index: torch.Tensor | None = None
    #: Number of clips in the train split; set by the loop.
    num_clips: int | None = None
    #: Seed for methods that draw random numbers.
    seed: int = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        taken = [name for name in inspect.signature(cls).parameters if name in SET_ON_METHODS]
        if taken:
            raise ValueError(f"{cls.__name__}: training sets {taken[0]!r} itself; give that option another name")

    def attach(self, model: MMBalanceForAudioVisualClassification) -> None:
        """Reset the method and attach it to a model, which then calls it in training.

        Raises:
            ValueError: if the method is not defined for the model's fusion head or number of modalities, or needs
                `num_clips` and it is not set.
        """
        self._check(model)
        config = model.config
        if config.fused_loss_weight is None:
            config.fused_loss_weight = self.fused_loss_weight
        if config.unimodal_loss_weight is None:
            # Heads for diagnosis learn only from these losses, which do not reach the towers: every method needs them.
            diagnosis = model.fusion.unimodal_for_diagnosis
            config.unimodal_loss_weight = 1.0 if diagnosis else self.unimodal_loss_weight
        self.fused_weight, self.unimodal_weight = config.fused_loss_weight, config.unimodal_loss_weight
        self._check_weights()
        self.model = model
        #: Number of optimiser steps done.
        self.step = 0
        #: What else a resumed run needs, by name; the same in every process, on the device of the batches.
        self.state: dict[str, torch.Tensor] = {}
        self._totals: dict[str, torch.Tensor] = {}
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._loss_scale: torch.Tensor | None = None
        self._separate: dict[nn.Parameter, torch.Tensor] = {}
        self._towers: list[list[nn.Parameter]] = []
        self.start()
        self._towers = []
        model.balancing = self

    def _check(self, model: MMBalanceForAudioVisualClassification) -> None:
        name, head = type(self).__name__, model.fusion
        modalities, fusion = list(model.config.modalities), model.config.fusion
        if self.two_modalities and len(modalities) != 2:
            raise ValueError(f"{name} compares two modalities; the model has {len(modalities)}: {modalities}")
        if self.fusion is not None and fusion != self.fusion:
            raise ValueError(
                f"{name} belongs to the fusion head {self.fusion!r}: set --fusion {self.fusion}, not {fusion}"
            )
        if self.needs_split and head.unimodal_for_diagnosis:
            raise ValueError(
                f"{name} needs unimodal logits that are parts of the decision; the fusion head {fusion!r} has none:"
                " use a head that has them, such as sum, concat, qmf or adaptive"
            )
        if self.needs_pooled_features and model.config.frame_pooling == "log_probs":
            raise ValueError(f"{name} works on pooled features: use a frame_pooling other than 'log_probs'")
        if self.needs_clip_index and self.num_clips is None:
            raise ValueError(f"{name} tracks each clip of the train split: set num_clips, their number, before attach")

    def _check_weights(self) -> None:
        name, used = type(self).__name__, (self.fused_weight, self.unimodal_weight)
        if not any(used):
            raise ValueError(
                f"{name} has no loss to learn from: fused_loss_weight and unimodal_loss_weight are both 0; remove them"
                f" from the config, or set them to {self.fused_loss_weight:g} and {self.unimodal_loss_weight:g}"
            )
        for part, weight in zip(("fused", "unimodal"), used, strict=True):
            if getattr(self, f"{part}_loss_weight") and not weight:
                logger.warning("%s is defined with the %s loss, but the config sets its weight to 0", name, part)

    def start(self) -> None:
        """Set the initial `state`; `self.model` is already set."""

    def __call__(self, batch: TrainingBatch) -> torch.Tensor:
        """Return the loss of a training batch; called by the model."""
        if not torch.is_grad_enabled():
            return batch.loss
        index = self.clip_index
        if self.needs_clip_index and (index is None or index.shape != batch.labels.shape):
            raise ValueError(
                f"{type(self).__name__} tracks each clip of the train split: set clip_index, the indices of the"
                " batch's clips in it, before each batch"
            )
        device = batch.labels.device
        if any(value.device != device for value in self.state.values()):
            self.state = {name: value.to(device) for name, value in self.state.items()}
        loss = self.loss(batch)
        if not isinstance(loss, torch.Tensor) or loss.dim():
            found = f"one of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ValueError(f"{type(self).__name__}.loss must return the loss, a scalar tensor, not {found}")
        self.on_backward(loss, self._note_scale)
        return loss

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        """Return the loss of a batch, a scalar. Default: the loss with the config's weights."""
        return batch.loss

    def before_step(self) -> None:
        """Act on the gradients of a complete optimiser step; call it once, in every process, before clipping.

        Raises:
            RuntimeError: if no batch went through the model since the last step.
            ValueError: if gradients are sharded and the method needs complete ones.
        """
        if self._loss_scale is None:
            raise RuntimeError("before_step() without a backward: call it after the backward of a step's last batch")
        if self.needs_whole_gradients:
            _check_gradients(self.model, whole=True)
        totals = sum_over_processes(self._totals)
        rows = {name: gather_rows(torch.cat(parts)) for name, parts in self._rows.items()}
        self.modulate({**totals, **rows})
        self.step += 1
        self._totals, self._rows, self._separate, self._loss_scale, self._towers = {}, {}, {}, None, []

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        """Change the gradients of the parameters, and the state, once per optimiser step.

        Args:
            totals: Sums of what [`collect`] was given in the step, and rows of what [`collect_rows`] was given.
        """

    # Tools for methods.

    @property
    def loss_scale(self) -> torch.Tensor:
        """Factor of the step's gradients: 1, or that of the gradient scaler in float16."""
        assert self._loss_scale is not None  # there was a backward before `modulate`
        return self._loss_scale

    def mean_gradient(self, total: torch.Tensor) -> torch.Tensor:
        """Return a collected gradient of the loss as the step's mean over processes, without the loss scale."""
        return total / (self.loss_scale * world_size())

    def collect(self, **values: torch.Tensor) -> None:
        """Add values to the sums over the step's batches and processes; use the same names in every batch."""
        for name, value in values.items():
            value = value.detach().float()
            self._totals[name] = self._totals[name] + value if name in self._totals else value

    def collect_rows(self, **values: torch.Tensor) -> None:
        """Add rows, one for each clip, to those of the step's batches and processes."""
        for name, value in values.items():
            self._rows.setdefault(name, []).append(value.detach())

    def on_backward(self, loss: torch.Tensor, act: Callable[[torch.Tensor], None]) -> None:
        """Call `act` at the start of a loss's backward, with the gradient that arrives there."""
        if loss.requires_grad:
            loss.register_hook(act)

    def separate_gradients(self, loss: torch.Tensor, part: torch.Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Keep the gradient of one part of the loss separately, at the cost of an extra backward pass.

        It is computed inside the backward of `loss`, with the gradient that arrives there: loss scaling and division
        by the accumulation steps are those of the loss.
        """

        def act(upstream: torch.Tensor) -> None:
            found = torch.autograd.grad(part, parameters, upstream, retain_graph=True, allow_unused=True)
            for parameter, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    kept = self._separate.get(parameter)
                    self._separate[parameter] = gradient if kept is None else kept.add_(gradient)

        if parameters:  # none where the towers are frozen
            self.on_backward(loss, act)

    def separated(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return the gradient kept separately, as the step's mean over processes, on the scale of `parameter.grad`.

        Call it in every process, for the same parameters in the same order.
        """
        gradient = self._separate.pop(parameter, None)
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        if world_size() > 1:
            torch.distributed.all_reduce(gradient)
            gradient /= world_size()
        return gradient

    def tower_parameters(self) -> list[list[nn.Parameter]]:
        """Return the trained parameters of each tower: its backbone and, for vision, the pooling over frames."""
        if not self._towers:  # looked up once per step: wrapping a model may replace its parameters
            model = self.model
            modules: tuple[tuple[nn.Module, ...], ...] = (
                (model.audio_model,),
                (model.vision_model, model.frame_pooling),
            )
            self._towers = [
                [parameter for module in tower for parameter in module.parameters() if parameter.requires_grad]
                for tower in modules
            ]
        return self._towers

    def fuse(
        self,
        batch: TrainingBatch,
        modality_logits: torch.Tensor,
        modality_mask: torch.Tensor,
        rows: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return fused logits `(N, C)` of the model's head for unimodal logits and a mask other than the batch's own.

        Args:
            batch: Batch whose features or tokens the head reads.
            modality_logits: Unimodal logits `(N, M, C)`.
            modality_mask: Mask of the present modalities `(N, M)`.
            rows: For every modality, the clips `(N,)` of the batch that its logits belong to; by default, all clips
                in order.
        """
        head = self.model.fusion
        read = batch.features if head.reads_pooled else batch.tokens
        if read is not None and rows is not None:
            read = tuple(values[row] for values, row in zip(read, rows, strict=True))
        return head(modality_logits, modality_mask, read).logits

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return the step's generator, keyed by seed and step: the same in every process and in a resumed run."""
        return torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.step)

    def connected(self, loss: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        """Return a loss that does not use all of the model, in a form that distributed training accepts.

        There, every parameter that the outputs depend on must get a gradient, even if it is zero.
        """
        return loss if world_size() == 1 else loss + 0.0 * batch.loss

    def drop_empty_gradients(self) -> None:
        """Exclude the parameters that the step's loss did not reach from the step.

        Distributed training gives them a gradient of zeros, with which momentum or weight decay would move them.
        """
        reached = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
        lengths = torch.stack(torch._foreach_norm([gradient for _, gradient in reached])).tolist()
        for (parameter, _), length in zip(reached, lengths, strict=True):
            if length == 0:
                parameter.grad = None

    def scale_towers(self, factors: Sequence[float]) -> None:
        """Multiply the gradients of each tower by its factor."""
        _check_gradients(self.model)
        for factor, parameters in zip(factors, self.tower_parameters(), strict=True):
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if factor != 1.0 and gradients:
                torch._foreach_mul_(gradients, factor)

    # Checkpoints.

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all that a resumed run needs."""
        return {"step": torch.tensor(self.step), **self.state}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: if the state belongs to a different method.
        """
        shapes, found = (
            {name: tuple(value.shape) for name, value in part.items()} for part in (self.state_dict(), state)
        )
        if shapes != found:
            raise ValueError(
                f"the checkpoint's balancing state {found} does not fit {type(self).__name__}, {shapes}: resume with"
                " the balancing method, its options and the clips that the run was started with"
            )
        self.step = int(state["step"])
        self.state = {name: value for name, value in state.items() if name != "step"}

    def _note_scale(self, upstream: torch.Tensor) -> None:
        # Each of k accumulated losses is divided by k: their gradients sum to the loss scale.
        self._loss_scale = upstream.detach() if self._loss_scale is None else self._loss_scale + upstream.detach()


def _check_gradients(model: nn.Module, whole: bool = False) -> None:
    """Raise an error if another engine hides the gradients, or if this process holds only a part of them."""
    gradient = next((parameter.grad for parameter in model.parameters() if parameter.grad is not None), None)
    if gradient is None:
        raise ValueError(f"this balancing method changes gradients, which DeepSpeed does not show: {PLAIN}")
    if whole and hasattr(gradient, "placements"):
        raise ValueError(f"this balancing method reads complete gradients, which FSDP splits: {PLAIN}")
