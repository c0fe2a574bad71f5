"""A classifier of clips from a repository or folder, by the code of this package."""

from __future__ import annotations

from typing import Any

from hf_mmbalance import AudioVisualClassificationPipeline, MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.hub.errors import HubError, explained


def load_classifier(
    name: str, revision: str | None = None, trust_remote_code: bool = False, device: Any = None
) -> AudioVisualClassificationPipeline:
    """Load model and processor as a pipeline. Code of the repository is not run, but for a fusion head of its own.

    Args:
        name: Repository on the Hub, or folder.
        revision: Branch, tag or commit.
        trust_remote_code: Run the file of a fusion head that comes with the model.
        device: As in `transformers.pipeline`.

    Raises:
        HubError: the client's error and one sentence on what to do.
        ValueError: for a model that is none of this package's.
    """
    from transformers import PreTrainedConfig

    with explained(f"loading model {name}"):
        declared, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        kind = declared.get("model_type")
        if kind is None:
            raise HubError(
                f"{name} has no config.json that names a model type: check the name; if its upload was interrupted,"
                " push it again"
            )
        if kind != MMBalanceForAudioVisualClassification.config_class.model_type:
            raise ValueError(f"{name} is a {kind!r} model: name one that was trained with hf_mmbalance")
        model = MMBalanceForAudioVisualClassification.from_pretrained(
            name, revision=revision or "main", trust_remote_code=trust_remote_code
        )
        processor = MMBalanceProcessor.from_pretrained(name, revision=revision or "main")
    return AudioVisualClassificationPipeline(
        model, processor=processor, task="audio-visual-classification", device=device
    )
