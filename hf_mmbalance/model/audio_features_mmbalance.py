"""Input of the audio tower, computed from waveforms: spectrograms of fixed length, or raw audio with its mask."""

import inspect
from typing import Any

import numpy as np
import torch
from transformers import ClapFeatureExtractor, WhisperFeatureExtractor
from transformers.models.audio_spectrogram_transformer import ASTFeatureExtractor
from transformers.processing_utils import AudioKwargs
from transformers.utils import logging

from .log_mel_mmbalance import log_mel


logger = logging.get_logger(__name__)


def input_seconds(extractor: Any) -> float | None:
    """Return the length of the audio tower's input in seconds; `None` if it accepts audio of any length."""
    if isinstance(extractor, ASTFeatureExtractor):
        return extractor.max_length / 100  # 10 ms per frame
    if isinstance(extractor, WhisperFeatureExtractor):
        return extractor.n_samples / extractor.sampling_rate
    if isinstance(extractor, ClapFeatureExtractor):
        return extractor.nb_max_samples / extractor.sampling_rate
    return None


def has_audio_mask(extractor: Any) -> bool:
    """Return True if an `audio_mask` says which part of the input is audio and which is padding."""
    return not isinstance(extractor, (ASTFeatureExtractor, ClapFeatureExtractor))


def audio_features(extractor: Any, waveforms: list[np.ndarray], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Compute `input_values` `(B, ...)` and, for extractors that have one, `audio_mask`.

    If a clip is longer than the tower accepts, its end is ignored, with a warning.

    Args:
        extractor: Feature extractor of the audio tower. Log-mel spectrograms of an `ASTFeatureExtractor` are computed
            for the whole batch at once, equal to its own within 1e-3.
        waveforms: One mono waveform `(S_i,)` per clip, at the extractor's rate.
        options: Options for the extractor.

    Raises:
        ValueError: for an option that no feature extractor has.
    """
    _check_options(options, extractor)
    longest = max(map(len, waveforms)) / extractor.sampling_rate
    if isinstance(extractor, ASTFeatureExtractor):
        max_length = options.get("max_length") or extractor.max_length
        _warn_of_cut_audio(longest, max_length / 100)
        return {"input_values": _ast_features(extractor, waveforms, max_length)}
    _warn_of_cut_audio(longest, input_seconds(extractor))
    defaults: dict[str, Any] = {"padding": True, "return_attention_mask": True}
    if isinstance(extractor, WhisperFeatureExtractor):
        defaults = {"return_attention_mask": True}
    elif isinstance(extractor, ClapFeatureExtractor):
        # It would pick random parts of longer audio, so the same clip would get a different answer every time.
        waveforms, defaults = [wave[: extractor.nb_max_samples] for wave in waveforms], {}
    rate = extractor.sampling_rate
    outputs = extractor(waveforms, sampling_rate=rate, return_tensors="pt", **{**defaults, **options})
    found = {"input_values": outputs[extractor.model_input_names[0]]}
    if "attention_mask" in outputs:
        found["audio_mask"] = outputs["attention_mask"]
    return found


def _ast_features(extractor: ASTFeatureExtractor, waveforms: list[np.ndarray], max_length: int) -> torch.Tensor:
    features, _ = log_mel(
        waveforms,
        sampling_rate=extractor.sampling_rate,
        num_mel_bins=extractor.num_mel_bins,
        max_length=max_length,
    )
    return (features - extractor.mean) / (2 * extractor.std) if extractor.do_normalize else features


def _warn_of_cut_audio(seconds: float, taken: float | None) -> None:
    """Warn once that the end of a clip is ignored; up to a tenth beyond the tower's input can be codec padding."""
    if taken is not None and seconds > 1.1 * taken:
        logger.warning_once(  # type: ignore[attr-defined]
            f"audio beyond the first {taken:g} s of a clip is ignored: the audio tower accepts no more. The pipeline"
            " reads longer clips in windows; for training an AST, set a larger audio_max_length"
        )


def _check_options(options: dict[str, Any], extractor: Any) -> None:
    """Reject options that no feature extractor has: transformers would ignore them silently."""
    known = {*AudioKwargs.__annotations__, *inspect.signature(extractor.__call__).parameters}
    unknown = sorted(set(options) - known)
    if unknown:
        names = ", ".join(AudioKwargs.__annotations__)
        raise ValueError(f"audio_kwargs: unknown option {unknown[0]!r}; the options are {names}")


__all__ = ["audio_features", "has_audio_mask", "input_seconds"]
