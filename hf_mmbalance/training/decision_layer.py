"""The decision layer of a run: fitted on clips that the towers do not learn from, never trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_mmbalance.data.clips import ClipDataset
from hf_mmbalance.data.corruptions import CorruptedClips, CorruptionPlan
from hf_mmbalance.data.options import check_at_least
from hf_mmbalance.decision.ladder import PARENTS
from hf_mmbalance.decision.table import DecisionTable
from hf_mmbalance.embedding.stored import EmbeddedClips


if TYPE_CHECKING:
    from hf_mmbalance.decision import Allocation
    from hf_mmbalance.model.fusion_mmbalance import FusionOutput


@dataclass
class DecisionArguments:
    """Options for fitting the decision layer, used only by the fusion head `adaptive`."""

    decision_rung: str = field(
        default="auto", metadata={"help": "Rung of the decision layer by name; 'auto' chooses by cross-validation."}
    )
    known_groups: bool = field(
        default=False,
        metadata={"help": "Deployment has the same groups (speakers, cameras) as the calibration clips."},
    )
    decision_balance: float = field(
        default=0.0, metadata={"help": "Pull of the fitted weights towards each modality's capability share."}
    )
    calibration_corruptions: list[str] = field(
        default_factory=lambda: ["seen"],
        metadata={"help": "Corruptions of calibration clips in the final fit: kinds, groups such as seen, or none."},
    )
    calibration_draws: int = field(
        default=3, metadata={"help": "Versions of each calibration clip in the final fit, including the clean one."}
    )
    save_features: bool = field(
        default=True,
        metadata={"help": "Save the towers' features in decisions.parquet, so that `decide` can fit the same layer."},
    )

    def __post_init__(self) -> None:
        if self.decision_rung not in ("auto", *PARENTS):
            known = ", ".join(PARENTS)
            raise ValueError(f"decision_rung={self.decision_rung!r} is unknown: choose auto or one of {known}")
        check_at_least(self, 0, "decision_balance")


def corruption_plan(names: list[str], draws: int = 3, seed: int = 0) -> CorruptionPlan | None:
    """Return the plan of the named corruptions; None for `none`."""
    return None if names == ["none"] else CorruptionPlan.of(names, draws=draws, seed=seed)


def calibration_draws(clips: ClipDataset, options: DecisionArguments, seed: int) -> ClipDataset:
    """Return every calibration clip unchanged, followed by its corrupted versions."""
    plan = corruption_plan(options.calibration_corruptions, options.calibration_draws, seed)
    if isinstance(clips, EmbeddedClips):
        return clips if plan is None else clips.with_draws(plan)
    return clips if plan is None else CorruptedClips(clips, plan)


def fit(table: DecisionTable, options: DecisionArguments, structure: str) -> Allocation:
    """Fit the decision layer on the `calibration` rows of a table, with the code and folds of `mmbalance decide`.

    Args:
        table: Calibration rows and, for statistics of features, train rows.
        options: Options of the fit.
        structure: "default" keeps to the parameters that every adaptive head has, so that all checkpoints of a run
            have the same structure; "any" allows all rungs.
    """
    from hf_mmbalance.decision import fit_decision_layer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of the fit; `describe` shows those of the final one
        return fit_decision_layer(
            table,
            rung=options.decision_rung,
            known_groups=options.known_groups,
            balance=options.decision_balance,
            structure=structure,
        )


def apply_head(head: torch.nn.Module, table: DecisionTable) -> FusionOutput:
    """Apply a model's fusion head to a table's logits and features, on the head's device."""
    where = next((value.device for value in head.state_dict().values()), torch.device("cpu"))

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.nan_to_num(values), dtype=torch.float32, device=where)

    features = tuple(tensor(table.features[name]) for name in table.modalities)
    with torch.no_grad():
        return head(tensor(table.logits), torch.as_tensor(table.mask, device=where), features)
