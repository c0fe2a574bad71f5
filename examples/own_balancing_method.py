"""Write your own balancing method and compare it with plain joint training on synthetic clips.

python examples/own_balancing_method.py
"""

from hf_mmbalance.balancing import BalancingMethod


class SlowTheConfident(BalancingMethod):
    """Divide each tower's gradients by its modality's mean confidence, relative to that of all modalities."""

    def __init__(self, strength: float = 1.0):
        self.strength = strength

    def loss(self, batch):
        """Called with each batch, which has features, unimodal logits, mask, labels and losses."""
        confidence = batch.modality_logits.softmax(-1).amax(-1) * batch.modality_mask
        # `collect` sums these over the step's batches and processes.
        self.collect(confidence=confidence.sum(0), clips=batch.modality_mask.sum(0))
        return batch.loss

    def modulate(self, totals):
        """Called once per optimiser step, when the gradients are complete."""
        mean = totals["confidence"] / totals["clips"]
        if mean.isfinite().all():  # each modality occurs in the step
            self.scale_towers((mean.mean() / mean).pow(self.strength).tolist())


def main(out: str = "outputs/own-balancing", *options: str) -> dict[str, dict[str, float]]:
    """Train with and without the method; return the accuracies of both by table row (one seed: only an example)."""
    from hf_mmbalance.training.run import main as train

    accuracy = {}
    for name, method in (("joint", "joint"), ("own", f"{__file__}:SlowTheConfident")):
        results = train(["--balancing", method, "--output_dir", f"{out}/{name}", *options])
        accuracy[name] = {row["method"]: row["accuracy"] for row in results["rows"] if row["split"] == "test"}
    for name, row in accuracy.items():
        print(f"{name:<6}", ", ".join(f"{method} {100 * value:.1f}" for method, value in row.items()))
    return accuracy


if __name__ == "__main__":
    main()
