"""Write your own fusion head, train it on synthetic clips and load it again from the saved model.

python examples/own_fusion_head.py
"""

try:  # next to the model's own files: in training, and when the model is loaded from a folder or the Hub
    from .fusion_mmbalance import FusionHead, FusionOutput, masked_log_softmax
except ImportError:  # imported by itself
    from hf_mmbalance.model.fusion_mmbalance import FusionHead, FusionOutput, masked_log_softmax

import torch


class LearnedPower(FusionHead):
    """Product of the modalities' probabilities, each raised to its own power, which is learned with the towers."""

    def __init__(self, num_modalities: int, num_labels: int, feature_sizes: tuple = (), start: float = 1.0):
        super().__init__(num_modalities, num_labels, feature_sizes)
        self.log_power = torch.nn.Parameter(torch.full((num_modalities,), start).log())

    def forward(self, modality_logits, modality_mask, features=None):
        power = self.log_power.exp()[:, None]  # (M, 1)
        terms = power * masked_log_softmax(modality_logits, modality_mask)  # (B, M, C); 0 where a modality is missing
        return FusionOutput(logits=terms.sum(1), modality_contributions=terms)


def main(out: str = "outputs/own-head", *options: str) -> dict[str, float]:
    """Train with the head, load the saved model and return the learned powers."""
    from transformers import AutoModel

    from hf_mmbalance.training.run import main as train

    head = ["--fusion", f"{__file__}:LearnedPower", "--fusion_options", '{"start": 0.5}']
    train([*head, "--output_dir", out, *options])
    model = AutoModel.from_pretrained(out, trust_remote_code=True)  # this file was copied next to the weights
    powers = dict(zip(model.config.modalities, model.fusion.log_power.exp().tolist(), strict=True))
    print("powers:", powers)
    return powers


if __name__ == "__main__":
    main()
