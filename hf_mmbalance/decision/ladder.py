"""The ladder: cross-validation of every rung over groups, the strength of its shrinkage, and the rule of choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from hf_mmbalance.decision.fits import (
    SCALAR_STRENGTH,
    FitData,
    fit_maps,
    fit_prior,
    fit_temperatures,
    fit_weights,
    scaled_sum,
    single,
)
from hf_mmbalance.decision.folds import draw_folds, standard_error
from hf_mmbalance.decision.state import HeadState
from hf_mmbalance.metrics.measures import clip_nll, correct
from hf_mmbalance.progress import bar as progress_bar


#: Rung -> parent, from stiff to free; `sum` is the root. Without features, the parent of `typicality` replaces it.
PARENTS: dict[str, str | None] = {
    "sum": None,
    "prior_sum": "sum",
    "temperature": "prior_sum",
    "typicality": "temperature",
    "global": "typicality",
    "bias": "global",
    "vector": "typicality",
    "class": "bias",
    "dirichlet": "typicality",
}
FALLBACKS = ("sum", "prior_sum", "best_single")
#: Rungs that can be chosen if there are too few groups to test a rung on new ones.
STIFF = ("sum", "prior_sum", "temperature", "typicality", "global")
#: Rungs that add no buffer to the head, so that all checkpoints of a run have the same structure.
DEFAULT_STRUCTURE = ("sum", "prior_sum", "temperature", "global", "bias", "class")
#: Next to `global` they show what biases and class weights add; shown even where they cannot be chosen.
SHOWN = ("bias", "class")
STRENGTHS = (300.0, 30.0, 3.0)
MIN_CLIPS = 10
MIN_GROUPS = 3
MAX_CLASSES = 64
BAR_AFTER = 3.0  # seconds before a fit shows a progress bar
#: Rungs with parameters per class, which only have a meaning if the modality knows the class.
BY_CLASS = ("vector", "class", "dirichlet")


@dataclass
class Clips:
    """The clips of a fit.

    Args:
        data: logits, labels and typicality.
        groups: `(N,)` group of every row.
        names: `(N,)` clip that each row is a draw of.
        draws: `(N,)` number of the draw, 0 for the clean clip.
    """

    data: FitData
    groups: np.ndarray
    names: np.ndarray
    draws: np.ndarray

    def standard_error(self, values: np.ndarray, rows: np.ndarray | None = None) -> float:
        """Return the standard error of the mean of per-row values, respecting groups and draws."""
        rows = np.ones(len(values), dtype=bool) if rows is None else rows
        return standard_error(values[rows], self.names[rows], self.groups[rows])


@dataclass
class RungScore:
    """Cross-validation result of one rung.

    Args:
        nll: `(N,)` held-out NLL of every row.
        hit: `(N,)` held-out correctness.
        strength: chosen precision of the prior around the parent; None if the rung is not shrunk.
    """

    nll: np.ndarray
    hit: np.ndarray
    strength: float | None = None


@dataclass
class Ladder:
    """Every rung fitted on all data, its cross-validated scores, and the choice.

    Args:
        states: rung or fallback (`sum`, `best_single`) -> state fitted on all data.
        scores: the same keys -> held-out scores; empty if nothing could be cross-validated.
        chosen: name of the state to use.
        best_single: index of the modality of the fallback `best_single`.
        reason: one sentence that says why it was chosen.
        notes: sentences on what was left out or replaced by a fallback.
    """

    states: dict[str, HeadState]
    scores: dict[str, RungScore]
    chosen: str
    best_single: int
    reason: str
    notes: list[str] = field(default_factory=list)


@dataclass
class _Part:
    """One fitting part (a fold's training side, or all data) with the states fitted on it so far.

    `names` holds the clip that each row is a draw of.
    """

    data: FitData
    names: np.ndarray
    states: dict[str, HeadState] = field(default_factory=dict)


@dataclass
class Options:
    """Options of the fit of a ladder; see [`Allocation`]."""

    folds: int = 5
    seed: int = 0
    rung: str | None = None
    known_groups: bool = False
    structure: str = "any"
    balance: float = 0.0
    strengths: Sequence[float] = STRENGTHS


def fit_ladder(clips: Clips, options: Options) -> Ladder:
    """Fit every allowed rung and choose one.

    Raises:
        ValueError: if the rung does not exist.
    """
    data = clips.data
    allowed, notes = allowed_rungs(clips, options)
    if options.rung is not None:
        if options.rung not in allowed:
            ancestry(options.rung)
            notes.append(f"rung {options.rung!r} was requested, but these clips do not allow it")
        allowed = [name for name in allowed if name in ancestry(options.rung)]
    fold = _folds(clips, options)
    if fold is None:
        number = len(np.unique(clips.names))
        notes.append(f"{number} clips of {len(data.seen)} class(es) are too few to fit: the plain sum is used")
        plain = data.plain_sum()
        return Ladder({"sum": plain}, {}, "sum", 0, "too few clips to fit anything", notes)
    held_out = [fold == k for k in range(int(fold.max()) + 1)]
    parts = [_Part(data.take(~rows), clips.names[~rows]) for rows in held_out] + [_Part(data, clips.names)]
    scores: dict[str, RungScore] = {}
    best_single = _fallbacks(parts, held_out, data, scores)
    beside = [name for name in SHOWN if name not in allowed and options.rung is None and "global" in allowed]
    if some_class_unknown(data):
        beside = [name for name in beside if name not in BY_CLASS]
    rungs = [*(name for name in PARENTS if name in allowed and name != "sum"), *beside]
    fits = [len(parts) * (len(options.strengths) if name in SHRUNK else 1) for name in rungs]
    with progress_bar(total=sum(fits), desc="decision layer", unit="fit", delay=BAR_AFTER, leave=False) as bar:
        for done, name in zip(np.cumsum(fits), rungs, strict=True):
            scores[name] = _fit_and_score(name, parts, held_out, data, options, bar)
            bar.update(int(done) - bar.n)  # the search may end before the last strength
    if options.rung in allowed:
        chosen, reason = str(options.rung), "requested"
    else:
        chosen, reason = choose(scores, clips, allowed)
    return Ladder(parts[-1].states, scores, chosen, best_single, reason, notes)


def ancestry(rung: str) -> list[str]:
    """Return the rung and its parents up to `sum`.

    Raises:
        ValueError: if the name is not a rung.
    """
    if rung not in PARENTS:
        raise ValueError(f"rung {rung!r} is unknown; choose among {', '.join(PARENTS)}.")
    parent = PARENTS[rung]
    return [rung] if parent is None else [rung, *ancestry(parent)]


def allowed_rungs(clips: Clips, options: Options) -> tuple[list[str], list[str]]:
    """Return the rungs that these clips can support, from stiff to free, and notes on what was left out."""
    data, notes = clips.data, []
    allowed = [rung for rung in PARENTS if options.structure == "any" or rung in DEFAULT_STRUCTURE]
    classes, number = data.logits.shape[2], len(np.unique(clips.groups))
    if data.typicality is None or not data.typicality.any():
        allowed = [rung for rung in allowed if rung != "typicality"]
    elif not clips.draws.any() and "typicality" in allowed:
        notes.append("typicality is fitted on clean clips only; corrupted calibration draws make it reliable")
    if number < MIN_GROUPS and not options.known_groups:
        allowed = [rung for rung in allowed if rung in STIFF]
        notes.append(
            f"{number} group(s): too few to test a rung on groups that it was not fitted on, so only"
            f" {', '.join(STIFF)} and the best single modality can be chosen (more rungs need at least {MIN_GROUPS}"
            " groups, or --known_groups if the groups at deployment are the same);"
            f" {', '.join(SHOWN)} are shown for comparison"
        )
    elif classes > MAX_CLASSES:
        allowed = [rung for rung in allowed if rung != "dirichlet"]
        notes.append(f"{classes} classes: dirichlet is left out above {MAX_CLASSES}")
    if some_class_unknown(data):
        assert data.known is not None
        allowed = [rung for rung in allowed if rung not in BY_CLASS]
        notes += [
            f"modality {m} does not know {int((~row).sum())} of {classes} classes (indices"
            f" {np.flatnonzero(~row)[:10].tolist()}): it gives no evidence for them, and {', '.join(BY_CLASS)} are"
            " left out"
            for m, row in enumerate(data.known)
            if not row.all()
        ]
    present = data.mask.numpy()
    if len(np.unique(clips.names[present.sum(axis=1) > 1])) < MIN_CLIPS:
        allowed = [rung for rung in allowed if rung in ("sum", "prior_sum", "temperature", "typicality")]
        notes.append(f"fewer than {MIN_CLIPS} clips have two modalities: no weights can be fitted")
    absent = np.setdiff1d(np.arange(classes), data.labels)
    if len(absent):
        notes.append(
            f"{len(absent)} class(es) have no clip to fit on (indices {absent[:10].tolist()}): they keep"
            " the values of the parent rung and have no bias"
        )
    for m in np.flatnonzero(~present.any(axis=0)):
        notes.append(f"modality {m} is missing in every clip: it stays uncalibrated, at weight 1")
    return allowed, notes


def some_class_unknown(data: FitData) -> bool:
    """Return True if some modality does not know all classes."""
    return data.known is not None and not data.known.all()


def _folds(clips: Clips, options: Options) -> np.ndarray | None:
    number = len(np.unique(clips.names))
    if number < MIN_CLIPS or len(clips.data.seen) < 2:
        return None
    groups = np.zeros(len(clips.names)) if options.known_groups else clips.groups
    return draw_folds(clips.data.labels, groups, clips.names, options.folds, options.seed)


def _fallbacks(parts: list[_Part], held_out: list[np.ndarray], data: FitData, scores: dict[str, RungScore]) -> int:
    """Fit and score `sum` and `best_single`; return the best single modality."""
    for part in parts:
        part.states["sum"] = scaled_sum(part.data)
    scores["sum"] = _score([part.states["sum"] for part in parts[:-1]], held_out, data)
    modalities = range(data.logits.shape[1])
    present = data.mask.numpy().any(axis=0)

    def loss(m: int) -> float:
        """Return the held-out NLL of a modality; others replace it in clips without it, so that all clips count."""
        order = [m, *(other for other in modalities if other != m)]
        nll = _score([single(part.states["sum"], order) for part in parts[:-1]], held_out, data).nll.mean()
        return float(nll) if present[m] else np.inf  # a modality that no clip has would tie with the best

    order = sorted(modalities, key=loss)
    for part in parts:
        part.states["best_single"] = single(part.states["sum"], order)
    scores["best_single"] = _score([part.states["best_single"] for part in parts[:-1]], held_out, data)
    return order[0]


def _score(
    states: Sequence[HeadState], held_out: list[np.ndarray], data: FitData, strength: float | None = None
) -> RungScore:
    nll, hit = np.empty(len(data.labels)), np.empty(len(data.labels))
    for state, rows in zip(states, held_out, strict=True):
        fused = state.fuse(data.logits[rows], None if data.typicality is None else data.typicality[rows]).logits
        nll[rows], hit[rows] = clip_nll(fused, data.labels[rows]), correct(fused, data.labels[rows])
    return RungScore(nll, hit, strength)


def _fit_and_score(
    rung: str, parts: list[_Part], held_out: list[np.ndarray], data: FitData, options: Options, bar: tqdm
) -> RungScore:
    """Fit one rung on every part at each strength, choose a strength and keep its states."""
    folds, score = parts[:-1], None
    before: list[HeadState | None] = [None] * len(folds)
    strengths = options.strengths if rung in SHRUNK else (1.0,)
    for strength in strengths:
        tried = []
        for part, start in zip(folds, before, strict=True):
            tried.append(fit_rung(rung, part, strength, start, options.balance))
            bar.update()
        new = _score(tried, held_out, data, strength if rung in SHRUNK else None)
        # Held-out NLL falls, then rises, as shrinkage weakens: the first rise ends the search.
        if score is not None and new.nll.mean() >= score.nll.mean():
            break
        score, before = new, list(tried)
    assert score is not None
    start = None
    for strength in strengths[: strengths.index(score.strength) + 1 if score.strength else 1]:
        start = fit_rung(rung, parts[-1], strength, start, options.balance)
    for part, state in zip(parts, [*before, start], strict=True):
        assert state is not None
        part.states[rung] = state
    return score


#: Rungs that are shrunk to their parent by a chosen strength.
SHRUNK = ("global", "bias", "vector", "class", "dirichlet")


def fit_rung(rung: str, part: _Part, strength: float, start: HeadState | None, balance: float = 0.0) -> HeadState:
    """Fit one rung at one strength, starting from its parent or from the solution at the previous strength."""
    data = part.data
    parent_name = PARENTS[rung]
    while parent_name not in part.states:
        assert parent_name is not None
        parent_name = PARENTS[parent_name]
    parent = part.states[parent_name]
    if rung == "prior_sum":
        return data.plain_sum().replace(log_prior=fit_prior(data.labels, data.logits.shape[2], part.names))
    if rung in ("temperature", "typicality"):
        return fit_temperatures(data, parent, slope=rung == "typicality")
    if rung in ("vector", "dirichlet"):
        mapped = fit_maps(data, parent, strength, rung, start)
        return fit_weights(data, mapped, SCALAR_STRENGTH, tied=True, with_bias=False, balance=balance, start=start)
    return fit_weights(data, parent, strength, tied=rung != "class", with_bias=rung != "global", balance=balance,
                       start=start)  # fmt: skip


def rebalanced(ladder: Ladder, clips: Clips, balance: float) -> HeadState:
    """Refit `class` (`global` where `class` was not fitted) with a balance penalty, at the strengths of the ladder."""
    part = _Part(clips.data, clips.names, dict(ladder.states))
    found = ladder.states.get("global", ladder.states["sum"])
    for rung in ("global", "bias", "class"):
        score = ladder.scores.get(rung)
        if score is not None and score.strength is not None:
            found = fit_rung(rung, part, score.strength, None, balance)
            part.states[rung] = found
    return found


def choose(scores: dict[str, RungScore], clips: Clips, candidates: Sequence[str]) -> tuple[str, str]:
    """Choose the simplest rung within one paired standard error of the best in held-out NLL.

    A rung is excluded if it loses more than one paired standard error of held-out accuracy to the best fallback, on
    all draws or on the clean ones. A rung that does not beat the fallbacks in mean held-out NLL is never chosen.

    Returns:
        Name of the choice (a rung or `best_single`) and the reason.
    """
    out = [name for name in candidates if name not in FALLBACKS and _loses_accuracy(scores, clips, name)]
    kept = [name for name in candidates if name not in out]
    chosen, reason = _within_one_error(scores, clips, kept)
    if out:
        reason += f"; {', '.join(out)} {'lose' if len(out) > 1 else 'loses'} held-out accuracy to a fallback"
    fallback = min((name for name in FALLBACKS if name in scores), key=lambda name: scores[name].nll.mean())
    if chosen != fallback and scores[chosen].nll.mean() >= scores[fallback].nll.mean():
        reason = (
            f"{chosen} ({scores[chosen].nll.mean():.4f}) does not beat the fallback {fallback}"
            f" ({scores[fallback].nll.mean():.4f}) in held-out NLL"
        )
        chosen = fallback
    return chosen, reason


def _loses_accuracy(scores: dict[str, RungScore], clips: Clips, name: str) -> bool:
    """Return True if a rung loses held-out accuracy to the best fallback (see `choose`), on all or on clean draws."""
    for rows in (np.ones(len(clips.draws), dtype=bool), clips.draws == 0):
        if not rows.any():
            continue
        rival = max((f for f in FALLBACKS if f in scores), key=lambda f: scores[f].hit[rows].mean())
        loss = scores[rival].hit - scores[name].hit
        if loss[rows].mean() > clips.standard_error(loss, rows):
            return True
    return False


def _within_one_error(scores: dict[str, RungScore], clips: Clips, candidates: Sequence[str]) -> tuple[str, str]:
    best = min(candidates, key=lambda name: scores[name].nll.mean())
    for name in candidates:
        difference = scores[name].nll - scores[best].nll
        error, nll = clips.standard_error(difference), f"held-out NLL {scores[name].nll.mean():.4f}"
        if name == best:
            return name, f"{nll}, the lowest; no simpler rung is within one paired standard error of it"
        if difference.mean() <= error:
            return name, (
                f"the simplest rung within one paired standard error ({error:.4f}) of the best ({best}):"
                f" {nll} against {scores[best].nll.mean():.4f}"
            )
    raise AssertionError("the best candidate is among the candidates")
