"""InfoReg: regulating information acquisition early in training (Huang et al., CVPR 2025, arXiv 2503.18595)."""

from __future__ import annotations

import math

import torch

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import register_balancing_method
from hf_mmbalance.balancing.scores import collect_scores
from hf_mmbalance.model.outputs_mmbalance import TrainingBatch


@register_balancing_method("inforeg")
class InfoReg(BalancingMethod):
    r"""CE(z, y) + sum_m CE(z_m, y); in the prime window, the tower that is ahead is held near its epoch's start.

    The term beta exp(tanh(s_m - s_m')) (theta - theta_0) is added to that tower's gradient, with s the step's mean of
    softmax(z)[y] over clips that have both modalities, and theta_0 the tower's parameters at the start of the epoch.
    The window is open in the first epoch, and in epoch e if (T_e - T_e-1) / T_e > `window`. T is the mean over the
    last 10 epochs of the trace of the Fisher information of the tower that is ahead: the sum over weight matrices of
    the mean squared gradient, summed over the epoch's steps.

    The published code uses sums of scores over a batch, whose tanh is 1 for usual batch sizes, the audio tower's trace
    for both towers, and beta .95 for audio and .1 for vision. One copy of the towers is kept, also in checkpoints. The
    training loop sets the epoch (`epoch`).

    Args:
        beta: Strength, one per modality or one for all; published: [0.95, 0.1]. 0 is training with all losses.
        window: Relative growth of the trace above which the window is open; published: 0.05.
    """

    two_modalities = True
    unimodal_loss_weight = 1.0
    needs_whole_gradients = True

    def __init__(self, beta: float | list[float] = 0.95, window: float = 0.05):
        betas = [float(beta)] * 2 if isinstance(beta, int | float) else [float(value) for value in beta]
        if len(betas) != 2 or min(betas) < 0:
            raise ValueError(
                f"inforeg: beta={beta!r} must be one number, or one for each of two modalities, not negative"
            )
        self.betas, self.window = betas, window

    def start(self) -> None:
        self.state = {
            # Traces of both towers: of the current epoch (last) and of the 11 before it, 0 where there was none.
            "traces": torch.zeros(12, 2),
            "open": torch.ones(2),
            "epoch": torch.tensor(-1.0),
            **self._snapshot(),
        }

    def _snapshot(self) -> dict[str, torch.Tensor]:
        return {
            f"start.{m}.{place}": parameter.detach().clone()
            for m, parameters in enumerate(self.tower_parameters())
            for place, parameter in enumerate(parameters)
        }

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        if any(self.betas):
            if int(self.state["epoch"]) != self.epoch:
                self._start_epoch()
            collect_scores(self, batch)
        return batch.loss

    def _start_epoch(self) -> None:
        traces = self.state["traces"]
        if self.epoch > 0:
            newest, before = traces[2:].mean(0), traces[1:-1].mean(0)
            self.state["open"] = ((newest - before) > self.window * newest).to(traces)
            self.state["traces"] = torch.cat([traces[1:], torch.zeros_like(traces[:1])])
        self.state |= {"epoch": torch.full_like(self.state["epoch"], self.epoch), **self._snapshot()}

    def modulate(self, totals: dict[str, torch.Tensor]) -> None:
        if not any(self.betas):
            return
        towers, state = self.tower_parameters(), self.state
        traces = torch.stack([self._trace(parameters) for parameters in towers]).to(state["traces"])
        state["traces"] = torch.cat([state["traces"][:-1], state["traces"][-1:] + torch.nan_to_num(traces, 0.0, 0.0)])
        scores = (totals["scores"] / totals["clips"].clamp(min=1)).tolist()
        ahead = 0 if scores[0] > scores[1] else 1
        if scores[0] != scores[1] and state["open"][ahead]:
            strength = self.betas[ahead] * math.exp(math.tanh(scores[ahead] - scores[1 - ahead]))
            for place, parameter in enumerate(towers[ahead]):
                if parameter.grad is not None:
                    moved = parameter.detach() - state[f"start.{ahead}.{place}"]
                    parameter.grad.add_(moved * (strength * self.loss_scale))

    def _trace(self, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
        """Return the sum over weight matrices of the mean squared gradient, without the loss scale."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None and parameter.dim() > 1]
        if not gradients:
            return torch.zeros((), device=self.loss_scale.device)
        return torch.stack([(gradient.float() / self.loss_scale).square().mean() for gradient in gradients]).sum()
