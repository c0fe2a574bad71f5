"""Fits of the parts of a decision layer: prior, temperatures, typicality slopes, own maps, weights.

Every loss is the mean NLL of the head's own functions plus a normal prior around the parent state, |theta - parent|^2
strength / (2 N). Classes without clips keep the parent's values and do not compete in the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_mmbalance.decision.optimise import Bounds, minimise
from hf_mmbalance.decision.state import ORDER, SLOPE, HeadState, as_tensors, own_log_probs
from hf_mmbalance.metrics.measures import capability, log_softmax, shares
from hf_mmbalance.model.fusion_adaptive_mmbalance import calibrate, evidence_of, fused_logits


LOG_TEMPERATURE_BOUND = 4.0
SLOPE_BOUND = 3.0
SMALLEST_WEIGHT = 1e-4
#: Precision of the normal prior on log T and on slopes.
SCALAR_STRENGTH = 1.0
#: Strength of the pull on a Dirichlet map's bias and diagonal, relative to that on its off-diagonal.
DIRICHLET_BIAS, DIRICHLET_DIAGONAL = 0.3, 0.03
BLOCK = 1 << 18  # array elements that a loss processes at a time
#: Pseudo-counts per class to choose from when smoothing a prior.
PSEUDO_COUNTS = np.exp(np.linspace(np.log(0.1), np.log(1e5), 60))


@dataclass
class FitData:
    """Clips that a state is fitted on.

    Args:
        logits: `(N, M, C)`, NaN rows where a modality is missing.
        labels: `(N,)` class indices.
        typicality: `(N, M)`, 0 where it is unknown; None without features.
        known: `(M, C)` bool, the classes that each modality knows; None for all.
    """

    logits: np.ndarray
    labels: np.ndarray
    typicality: np.ndarray | None = None
    known: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.log_probs, self.mask = as_tensors(self.logits)
        self.seen = np.unique(self.labels)
        self.target = torch.from_numpy(np.searchsorted(self.seen, self.labels))

    def take(self, rows: np.ndarray) -> FitData:
        """Return some of the clips."""
        typicality = None if self.typicality is None else self.typicality[rows]
        return FitData(self.logits[rows], self.labels[rows], typicality, self.known)

    def plain_sum(self) -> HeadState:
        """Return the neutral state for the modalities and classes of these clips."""
        return HeadState.plain_sum(*self.logits.shape[1:]).with_known(self.known)

    def modality(self, m: int) -> FitData | None:
        """Return the clips that have modality m, with that modality only; None if no clip has it."""
        rows = self.mask[:, m].numpy()
        if not rows.any():
            return None
        typicality = None if self.typicality is None else self.typicality[rows, m : m + 1]
        known = None if self.known is None else self.known[m : m + 1]
        return FitData(self.logits[rows, m : m + 1], self.labels[rows], typicality, known)

    def several(self) -> FitData:
        """Return the clips with at least two modalities: the others say nothing about weights."""
        rows = self.mask.sum(1).numpy() > 1
        return self if rows.all() else self.take(rows)


def blocks(rows: int, width: int) -> list[slice]:
    """Return slices of rows of `width` numbers, each small enough for a processor's cache.

    Without them, a loss over many clips and classes spends most of its time on memory access, since each of its steps
    creates arrays over all clips.
    """
    size = max(1, BLOCK // width)
    return [slice(first, first + size) for first in range(0, rows, size)]


def own_nll(own: FitData, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean NLL of clips reduced to one modality, over the classes that occur among the labels.

    Args:
        own: clips with that modality only.
        parameters: parameters of that modality, by the names of the head's buffers.
    """
    typicality = None if own.typicality is None else torch.from_numpy(own.typicality)
    clips, _, classes = own.log_probs.shape
    every = classes == len(own.seen)
    loss = torch.nn.functional.nll_loss if every else torch.nn.functional.cross_entropy
    total = torch.zeros((), dtype=own.log_probs.dtype)
    for part in blocks(clips, classes):
        t = None if typicality is None else typicality[part]
        posteriors = calibrate(own.log_probs[part], own.mask[part], parameters, t)[:, 0]
        total = total + loss(posteriors if every else posteriors[:, own.seen], own.target[part], reduction="sum")
    return total / clips


def pull(theta: torch.Tensor, anchor: np.ndarray, strength: float | np.ndarray, clips: int) -> torch.Tensor:
    """Return the negative log of the normal prior around `anchor`, per clip."""
    return (torch.as_tensor(strength) * (theta - torch.from_numpy(anchor)).square()).sum() * (0.5 / clips)


def fit_prior(labels: np.ndarray, classes: int, clips: Sequence[Any] | np.ndarray | None = None) -> np.ndarray:
    """Return the log class prior `(C,)` of the labels, smoothed towards uniform as far as the counts allow.

    The smoothing is a symmetric Dirichlet prior whose pseudo-count has the largest marginal likelihood (empirical
    Bayes): counts that differ only by chance give a uniform prior, uneven counts stay uneven. A class without clips
    gets the smallest frequency of the other classes, since nothing is known against it.

    Args:
        labels: `(N,)` class indices.
        classes: number of classes C.
        clips: `(N,)` name of the clip that each row is a draw of; each clip counts once. None: every row is a clip.
    """
    from scipy.special import gammaln

    if clips is not None:
        labels = labels[np.unique(clips, return_index=True)[1]]
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    kept = counts[counts > 0]
    alpha = PSEUDO_COUNTS[:, None]
    # log p(counts | alpha) of the Dirichlet-multinomial distribution, up to a constant
    evidence = gammaln(len(kept) * alpha[:, 0]) - gammaln(len(kept) * alpha[:, 0] + kept.sum())
    evidence += (gammaln(kept + alpha) - gammaln(alpha)).sum(axis=1)
    smoothed = np.where(counts > 0, counts, kept.min()) + PSEUDO_COUNTS[evidence.argmax()]
    return np.log(smoothed / smoothed.sum())


def fit_temperatures(data: FitData, state: HeadState, *, temperature: bool = True, slope: bool = False) -> HeadState:
    """Fit temperature and typicality slope of every modality by its own NLL.

    Args:
        data: clips to fit on; slopes need their typicality.
        state: starting point, whose other parameters stay unchanged.
        temperature: fit log T (Guo et al., 2017).
        slope: fit the slope; it is at most 0, since a less typical clip is not more informative.

    Returns:
        `state` with `log_temperature` and, if `slope`, `typicality_slope`, which is 0 for a modality that no clip has.
    """
    log_temperature, slopes = state["log_temperature"].copy(), np.zeros(state.shape[0])
    for m in range(state.shape[0]):
        own = data.modality(m)
        if own is None:
            continue
        parameters = one_modality(state, m)
        start = np.array([log_temperature[m]] * temperature + [0.0] * slope)
        bounds: Bounds = [(-LOG_TEMPERATURE_BOUND, LOG_TEMPERATURE_BOUND)] * temperature + [
            (-SLOPE_BOUND, 0.0)
        ] * slope

        def loss(
            theta: torch.Tensor, own: FitData = own, parameters: dict[str, torch.Tensor] = parameters
        ) -> torch.Tensor:
            changed = dict(parameters)
            if temperature:
                changed["log_temperature"] = theta[:1]
            if slope:
                changed[SLOPE] = theta[-1:]
            penalty = pull(theta, np.zeros(len(theta)), SCALAR_STRENGTH, len(own.labels))
            return own_nll(own, changed) + penalty

        theta = minimise(loss, start, bounds)
        if temperature:
            log_temperature[m] = theta[0]
        if slope:
            slopes[m] = theta[-1]
    changes = {"log_temperature": log_temperature} | ({SLOPE: slopes} if slope else {})
    return state.replace(**changes)


def one_modality(state: HeadState, m: int) -> dict[str, torch.Tensor]:
    """Return the part of a state that calibrates modality m, as tensors for `calibrate`."""
    names = ("log_temperature", SLOPE, "calibration_scale", "calibration_map", "calibration_bias", "class_mask")
    own = {name: torch.from_numpy(state[name][m : m + 1]) for name in names if name in state.arrays}
    return own | {"log_prior": torch.from_numpy(state["log_prior"])}


def fit_maps(data: FitData, state: HeadState, strength: float, kind: str, start: HeadState | None = None) -> HeadState:
    """Fit a map of every modality's log-probabilities by its own NLL, at the temperatures and slopes of `state`.

    Args:
        data: clips to fit on.
        state: parent state, without maps; each map is shrunk to the identity.
        strength: precision of the normal prior.
        kind: "vector" (a scale and a bias per class) or "dirichlet" (full map and bias; off-diagonal and intercept
            regularisation of Kull et al., 2019, section 3.4).
        start: solution at a neighbouring strength, to start from.
    """
    modalities, classes = state.shape
    full = kind == "dirichlet"
    name = "calibration_map" if full else "calibration_scale"
    neutral = np.eye(classes) if full else np.ones(classes)
    maps = np.repeat(neutral[None], modalities, axis=0)
    biases = np.zeros((modalities, classes))
    rate = np.where(np.eye(classes) > 0, DIRICHLET_DIAGONAL, 1.0) if full else np.ones(classes)
    strengths = strength * np.concatenate([rate.ravel(), np.full(classes, DIRICHLET_BIAS if full else 1.0)])
    anchor = np.concatenate([neutral.ravel(), np.zeros(classes)])
    size = neutral.size
    for m in range(modalities):
        own = data.modality(m)
        if own is None:
            continue
        parameters = one_modality(state, m)
        # The bias is fitted after the division by the temperature, where it is in nats.
        temperature = float(np.exp(state["log_temperature"][m]))

        def loss(
            theta: torch.Tensor,
            own: FitData = own,
            parameters: dict[str, torch.Tensor] = parameters,
            temperature: float = temperature,
        ) -> torch.Tensor:
            changed = {name: theta[:size].reshape(1, *neutral.shape)}
            changed["calibration_bias"] = temperature * theta[None, size:]
            penalty = pull(theta, anchor, strengths, len(own.labels))
            return own_nll(own, parameters | changed) + penalty

        first = anchor
        if start is not None:
            first = np.concatenate([start[name][m].ravel(), start["calibration_bias"][m] / temperature])
        theta = minimise(loss, first)
        maps[m], biases[m] = theta[:size].reshape(neutral.shape), temperature * theta[size:]
    return state.replace(**{name: maps, "calibration_bias": biases})


def fit_weights(
    data: FitData,
    state: HeadState,
    strength: float,
    *,
    tied: bool,
    with_bias: bool,
    balance: float = 0.0,
    start: HeadState | None = None,
) -> HeadState:
    """Fit weights, one per modality (`tied`) or per modality and class, and optionally a bias per class.

    Args:
        data: clips to fit on; only those with at least two modalities count. Without any, the parent is returned.
        state: parent state; its calibration and prior stay unchanged.
        strength: precision of the normal prior around the parent.
        tied: one weight per modality.
        with_bias: also fit the bias.
        balance: weight of the mean over classes of KL(capability share || share of the weight), in nats.
        start: solution at a neighbouring strength, to start from.
    """
    data = data.several()
    if not len(data.labels):
        return state
    seen, modalities = data.seen, state.shape[0]
    shape = (modalities, 1 if tied else len(seen))
    loss_at = weighting_loss(data, state)
    able = capability(own_log_probs(data.logits, state.known), data.labels)[:, seen]
    target = torch.from_numpy(shares(np.nan_to_num(able))[0])
    bias = torch.from_numpy(state["bias"][seen])

    def pack(value: HeadState) -> np.ndarray:
        weights = value["weights"][:, seen]
        weights = weights.mean(axis=1, keepdims=True) if tied else weights
        return np.concatenate([weights.ravel(), value["bias"][seen] if with_bias else []])

    anchor, size = pack(state), shape[0] * shape[1]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        weights = theta[:size].reshape(shape).expand(modalities, len(seen))
        value = loss_at(weights, theta[size:] if with_bias else bias)
        if balance:
            value = value + balance * share_divergence(weights, target)
        return value + pull(theta, anchor, strength, len(data.labels))

    bounds: Bounds = [(SMALLEST_WEIGHT, None)] * size + [(None, None)] * (len(anchor) - size)
    theta = minimise(loss, anchor if start is None else pack(start), bounds)
    weights, biases = state["weights"].copy(), state["bias"].copy()
    weights[:, slice(None) if tied else seen] = theta[:size].reshape(shape)
    if with_bias:
        biases[seen] = theta[size:]
    return state.replace(weights=weights, bias=biases)


def weighting_loss(data: FitData, state: HeadState) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the mean NLL of clips, over the S classes that occur, as a function of weights `(M, S)` and bias `(S,)`.

    Calibration and prior are those of `state`; the evidence they give is computed only once.
    """
    own = {name: torch.from_numpy(np.asarray(value)) for name, value in state.arrays.items()}
    typicality = None if data.typicality is None else torch.from_numpy(data.typicality)
    posteriors = calibrate(data.log_probs, data.mask, own, typicality)
    evidence, several = evidence_of(posteriors, data.mask, own["log_prior"])
    evidence = evidence[..., data.seen].contiguous()
    fixed = {name: own[name][data.seen] for name in ("log_prior", "prior_shift")}

    def loss(weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=evidence.dtype)
        for part in blocks(len(evidence), evidence[0].numel()):
            fused = fused_logits(evidence[part], several[part], {**fixed, "weights": weights, "bias": bias})
            total = total + torch.nn.functional.cross_entropy(fused, data.target[part], reduction="sum")
        return total / len(evidence)

    return loss


def share_divergence(weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean over classes of KL(target || share of the weight) for weights and target shares `(M, C)`."""
    share = weights / weights.sum(0, keepdim=True)
    return (torch.xlogy(target, target) - target * share.log()).sum(0).mean()


def scaled_sum(data: FitData) -> HeadState:
    """Fit the plain sum under one temperature; a modality that is alone in a clip has its own temperature.

    With weights T_m / T the temperatures cancel: sum_m (T_m / T) l_m / T_m = (sum_m l_m) / T. Where a modality does
    not know some class, they cancel up to a constant per clip between the classes that it knows and the others. In a
    clip with only some of more than two modalities they cancel in part, since the head moves every weight towards 1.
    """
    neutral = data.plain_sum()
    own = fit_temperatures(data, neutral)
    several = data.several()
    if not len(several.labels):
        return own
    total = FitData(log_softmax(neutral.fuse(several.logits).logits[:, None]), several.labels)
    common = fit_temperatures(total, HeadState.plain_sum(1, data.logits.shape[2]))["log_temperature"][0]
    weights = np.exp(own["log_temperature"] - common)[:, None] * np.ones(neutral.shape)
    return own.replace(weights=weights)


def single(state: HeadState, order: Sequence[int]) -> HeadState:
    """Return a state that uses one modality of each clip, at its temperature: the first of `order` that the clip has.

    With two modalities the weights of a head can express this, since the only modality of a clip has weight 1. With
    more they cannot: where one is missing, the weights of the others lie between 0 and 1.
    """
    weights = np.zeros(state.shape)
    weights[order[0]] = 1.0
    found = HeadState.plain_sum(*state.shape).with_known(state.known)
    found = found.replace(log_temperature=state["log_temperature"], weights=weights)
    return found.replace(**{ORDER: np.array(order, dtype=np.float64)}) if len(order) > 2 else found
