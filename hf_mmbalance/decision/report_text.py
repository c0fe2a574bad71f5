"""Text of a report: the four sentences at the top and the glossary at the bottom."""

from __future__ import annotations

from typing import Any

from hf_mmbalance.decision.plain import clips_and_draws


Report = dict[str, Any]
GLOSSARY = {
    "95 % interval": "where the number would mostly lie for other clips (groups) of the same kind",
    "adaptive": "the decision layer fitted here, at the rung that cross-validation chose",
    "alignment": "mean squared distance between features of clips of one class, on the unit sphere",
    "balance index": "1 if every modality counts for exactly what it can do by itself, lower otherwise",
    "bias": "what the decision adds to each class for every clip: a class bias and the prior",
    "Brier": "squared error of the probabilities, summed over classes; 0 is best",
    "capability": "how often a modality by itself recognises a class, above chance",
    "contribution": "exact Shapley value of a modality: what it adds to the decision, averaged over all orders",
    "ECE": "expected calibration error: by how much confidence and accuracy differ on average; 0 is best",
    "effective rank": "number of directions that the features use, from 1 to their dimension",
    "effective weight": "how far a modality's log-probability of a class moves the score of that class: weight divided"
    " by temperature, times the diagonal of the modality's own map",
    "lean": "participation minus capability share: what the decision gives a modality beyond what it can do",
    "linear CKA": "how similar the features of two modalities are, from 0 to 1",
    "model": "the saved model's own decision layer, applied to the logits of this table",
    "NLL": "negative log-likelihood of the labels in nats: small if decisions are right and confidence is realistic",
    "participation": "a modality's share of the contributions of all modalities",
    "prior": "how frequent the classes are; a sum of log-probabilities counts it once for each modality",
    "reference": "decisions stored in the table; reference.fused holds those of the run",
    "rung": "one form of the decision layer, from nothing fitted (sum) to a full map per modality (dirichlet)",
    "temperature": "number that divides a modality's logits; above 1, the modality was over-confident",
    "trust": "calibrated probability that a modality by itself is right about a clip",
    "typicality slope": "how much the temperature of a modality rises for a clip that is unlike the training clips",
    "uniformity": "how evenly features spread over the unit sphere; lower is more even",
}


def layer_name(report: Report) -> str:
    """Return the name of the shown decision layer for use in a sentence."""
    return "the model's decision layer" if report["in_use"]["method"] == "model" else "the decision layer fitted here"


def summary(report: Report) -> list[str]:
    """Return four sentences: how good the decision is, which modality is stronger, where it leans, what it loses."""
    return [_accuracy(report), _modalities(report), _lean(report), _lost(report)]


def _accuracy(report: Report) -> str:
    rows = {row["method"]: row for row in report["rows"]}
    method = report["in_use"]["method"]
    own, plain = rows[method], rows["sum"]
    low, high = own["accuracy_ci"]
    judged = clips_and_draws(report["n_clips"], own["n"])
    text = (
        f"{layer_name(report).capitalize()} gets {_percent(own['accuracy'])} of {judged} right (95 %"
        f" interval {100 * low:.1f} to {100 * high:.1f}); the plain sum of the same models gets"
        f" {_percent(plain['accuracy'])}"
    )
    pair = report["in_use"]["over_sum"]
    low, high = pair["accuracy_ci"]
    size = f"{100 * pair['accuracy']:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f}"
    clear = "no clear difference" if low <= 0 <= high else "a clear gain" if low > 0 else "a clear loss"
    return f"{text}: {clear} ({size})."


def _modalities(report: Report) -> str:
    known = [(d["accuracy"], name) for name, d in report["modality_detail"].items() if d["n"]]
    known.sort(reverse=True)
    each = ", ".join(f"{name} {_percent(value)}" for value, name in known)
    worst, name = max((d["ece"], name) for name, d in report["modality_detail"].items() if d["n"])
    return f"Each modality by itself: {each}; the confidence of {name} is furthest off, by {100 * worst:.0f} points."


def _lean(report: Report) -> str:
    found = report["balance"][report["in_use"]["method"]]
    leans = {name: value["value"] for name, value in found["mean_lean"].items() if value["value"] is not None}
    if not leans:
        return "The lean of the decision is not known: no class has evaluated clips of every modality."
    name, value = max(leans.items(), key=lambda pair: pair[1])
    low, high = found["mean_lean"][name]["ci"] or (None, None)
    if low is None or low <= 0:
        return f"On average over classes, the decision has no clear lean (the largest is to {name}, {value:+.2f})."
    by_class = found["lean"][name]
    most = max((c for c, lean in enumerate(by_class) if lean is not None), key=lambda c: by_class[c])
    return (
        f"The decision leans to {name}: it counts for {100 * value:.0f} points more than its share of what the"
        f" modalities can do, most for class {report['classes'][most]}."
    )


def _lost(report: Report) -> str:
    part = report["rescued"][report["in_use"]["method"]]["lost"]
    if part is None:
        return "No modality gets any of these clips right by itself, so none can be lost."
    pulls = {name: sum(counts) for name, counts in report["lost"]["by_class"].items()}
    name = max(pulls, key=lambda key: pulls[key])
    cause = "bias and prior point" if name == "bias" else f"{name} points"
    why = f", most often because {cause} to another class" if report["lost"]["n"] else ""
    return f"Of the clips that at least one modality gets right, the decision loses {100 * part:.1f} %{why}."


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
