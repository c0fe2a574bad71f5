"""State of an adaptive head as float64 arrays; its decisions are computed by the head's own functions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mmbalance.metrics.measures import log_softmax


if TYPE_CHECKING:
    import torch

    from hf_mmbalance.model.fusion_adaptive_mmbalance import AdaptiveFusion

#: Buffer whose presence means that a head uses typicality.
SLOPE = "typicality_slope"
#: Modalities `(M,)`, best first, of a state that decides each clip by the first that it has; not a buffer of a head.
ORDER = "order"


@dataclass
class Fused:
    """Decision of a head: `logits (N, C)`, `weights (N, M, C)`, `contributions (N, M, C)` and `trust (N, M)`."""

    logits: np.ndarray
    weights: np.ndarray
    contributions: np.ndarray
    trust: np.ndarray


@dataclass(frozen=True)
class HeadState:
    """Buffers of `model.fusion` when `fusion="adaptive"`; every rung and fallback of the ladder is such a state.

    See [`AdaptiveFusion`] for the equation and the shapes.

    Args:
        arrays: name of a buffer -> float64 array. All `typicality_*` except the slope describe the towers' features;
            they are not needed if the caller passes typicality. `order` (see `ORDER`) is the only entry that a head
            cannot hold.
    """

    arrays: Mapping[str, np.ndarray]

    @classmethod
    def plain_sum(cls, modalities: int, classes: int) -> HeadState:
        """Return the neutral state: uniform prior, every weight 1, nothing calibrated."""
        return cls(
            {
                "log_prior": np.full(classes, -np.log(classes)),
                "prior_shift": np.zeros(classes),
                "log_temperature": np.zeros(modalities),
                "weights": np.ones((modalities, classes)),
                "bias": np.zeros(classes),
            }
        )

    def with_known(self, known: np.ndarray | None) -> HeadState:
        """Return a copy whose modalities know the classes `known (M, C)`; None for all, which needs no buffer."""
        if known is None or np.all(known):
            return self
        return self.replace(class_mask=np.asarray(known, dtype=np.float64))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def replace(self, **changes: np.ndarray) -> HeadState:
        """Return a copy with some arrays changed or added."""
        return replace(self, arrays={**self.arrays, **changes})

    @property
    def shape(self) -> tuple[int, int]:
        """Number of modalities and classes."""
        modalities, classes = self.arrays["weights"].shape
        return modalities, classes

    @property
    def known(self) -> np.ndarray:
        """`(M, C)` bool, the classes that each modality knows."""
        return np.asarray(self.arrays.get("class_mask", np.ones(self.shape))) > 0

    @property
    def calibration(self) -> str:
        """`calibration` option of the head."""
        if "calibration_map" in self.arrays:
            return "dirichlet"
        return "vector" if "calibration_scale" in self.arrays else "temperature"

    @property
    def options(self) -> dict[str, Any]:
        """Options of the head that holds this state; empty for the default structure."""
        found: dict[str, Any] = {} if self.calibration == "temperature" else {"calibration": self.calibration}
        if SLOPE in self.arrays:
            bases = [self.arrays.get(f"typicality_basis_{m}") for m in range(self.shape[0])]
            found["typicality"] = [0 if basis is None else len(basis) for basis in bases]
        return found

    def head(self, feature_sizes: Sequence[int] = ()) -> AdaptiveFusion:
        """Return the model's head with this state, in float64.

        Args:
            feature_sizes: width of every modality's features; by default taken from the state, if it has them.

        Raises:
            ValueError: if the state decides by an order of more than two modalities.
        """
        if ORDER in self.arrays:
            raise ValueError("a head weights all modalities of a clip; it cannot use only the best one of each clip.")
        import torch

        from hf_mmbalance.model.fusion_adaptive_mmbalance import AdaptiveFusion

        sizes = list(feature_sizes)
        if not sizes and SLOPE in self.arrays:
            means = [self.arrays.get(f"typicality_mean_{m}") for m in range(self.shape[0])]
            sizes = [0 if mean is None else len(mean) for mean in means]
        known = self.known.tolist() if "class_mask" in self.arrays else None
        head = AdaptiveFusion(*self.shape, tuple(sizes), known=known, **self.options).double()
        head.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in self.arrays.items()})
        return head.eval()

    def fuse(self, logits: np.ndarray, typicality: np.ndarray | None = None) -> Fused:
        """Decide from logits `(N, M, C)` (NaN rows where missing) and typicality `(N, M)` (None means 0)."""
        import torch

        from hf_mmbalance.model.fusion_adaptive_mmbalance import calibrate, combine

        log_probs, mask = as_tensors(logits)
        own = {name: torch.from_numpy(np.asarray(value)) for name, value in self.arrays.items()}
        known = None if typicality is None else torch.from_numpy(typicality)
        with torch.no_grad():
            posteriors = calibrate(log_probs, mask, own, known)
            fused, weights, contributions, trust = combine(posteriors, mask, own).to_tuple()
            if ORDER in self.arrays:
                first = self._first_of_order(mask)
                fused, weights, contributions, _ = combine(posteriors, first, own).to_tuple()
        return Fused(fused.numpy(), weights.numpy(), contributions.numpy(), trust.numpy())

    def _first_of_order(self, mask: torch.Tensor) -> torch.Tensor:
        """Return `(N, M)` bool: of the modalities present, only the first of `order`."""
        import torch

        order = torch.from_numpy(self[ORDER]).long()
        first = order[mask[:, order].int().argmax(dim=1)]
        return torch.zeros_like(mask).scatter_(1, first[:, None], True) & mask

    def typicality(self, features: Sequence[np.ndarray | None], mask: np.ndarray) -> np.ndarray | None:
        """Return the typicality `(N, M)` of features, one `(N, D_m)` (or None) per modality; None if not in use.

        Raises:
            ValueError: if features have a different width from those of the fit.
        """
        import torch

        if SLOPE not in self.arrays:
            return None
        head = self.head()
        assert head.ranks is not None
        for m, value in enumerate(features):
            if value is not None and head.ranks[m] and value.shape[1] != head.feature_sizes[m]:
                raise ValueError(
                    f"features of modality {m} have width {value.shape[1]}; the fit had {head.feature_sizes[m]}."
                )
        given = [
            None if value is None else torch.from_numpy(np.asarray(value, dtype=np.float64)) for value in features
        ]
        with torch.no_grad():
            found = head.typicality(given, torch.from_numpy(mask))
        assert found is not None
        return np.asarray(found)

    def class_weights(self) -> np.ndarray:
        """Return `(M, C)`: how far a modality's log-probability of a class moves that class's score at t = 0.

        This is the weight divided by the temperature, times the diagonal of the modality's own map minus the mean of
        the rest of its column (a constant per column moves all classes equally). It is 0 for a class that the modality
        does not know.
        """
        factor = self.known * self["weights"] / np.exp(self["log_temperature"])[:, None]
        if "calibration_scale" in self.arrays:
            factor = factor * self["calibration_scale"]
        if "calibration_map" in self.arrays:
            maps = self["calibration_map"]
            diagonal = np.einsum("mcc->mc", maps)
            factor = factor * (diagonal - (maps.sum(axis=1) - diagonal) / (maps.shape[1] - 1))
        return factor


def own_log_probs(logits: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return each modality's own prediction as log-probabilities `(N, M, C)`; NaN rows stay.

    For the classes that it knows, the probability is the softmax of its logits over them, times their share of all
    classes. Every other class keeps the uniform prior 1 / C, as in the plain sum of a clip without other modalities.

    Args:
        logits: `(N, M, C)`, NaN rows where missing.
        known: `(M, C)` bool, the classes that each modality knows.
    """
    if known.all():
        return log_softmax(logits)
    share = known.mean(axis=-1, keepdims=True)
    inside = log_softmax(np.where(known, logits, -np.inf)) + np.log(share)
    return np.where(known | np.isnan(logits), inside, -np.log(known.shape[-1]))


def as_tensors(logits: np.ndarray) -> tuple[Any, Any]:
    """Return log-probabilities `(N, M, C)` (0 where missing) and mask `(N, M)` of logits with NaN rows, as tensors."""
    import torch

    mask = ~np.isnan(logits).any(axis=2)
    log_probs = log_softmax(np.where(mask[..., None], logits, 0.0))
    log_probs[~mask] = 0.0
    return torch.from_numpy(log_probs), torch.from_numpy(mask)


def state_of_run(folder: str | os.PathLike[str]) -> HeadState | None:
    """Load the head of a saved model without its towers; None if it is neither `adaptive` nor `sum`.

    Args:
        folder: folder with `config.json` and `model.safetensors` (or its shards).

    Raises:
        ValueError: if the files are damaged.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        return None
    try:
        return _saved_state(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder}: config.json or the weights are damaged ({error!r}).") from error


def _saved_state(folder: Path, config: dict[str, Any]) -> HeadState | None:
    if config.get("fusion") == "sum":
        return HeadState.plain_sum(len(config.get("modalities", ["audio", "vision"])), len(config["id2label"]))
    if config.get("fusion") != "adaptive":
        return None
    from safetensors import safe_open

    arrays: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as weights:
            names = [name for name in weights.keys() if name.startswith("fusion.")]  # noqa: SIM118
            arrays |= {name.removeprefix("fusion."): weights.get_tensor(name).double().numpy() for name in names}
    return HeadState(arrays) if "log_prior" in arrays else None
