"""Limits for files from an untrusted repository, checked before a model is built from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hf_mmbalance.hub.errors import HubError


# Far above any published audio or vision tower, and far below anything that would make a machine hang.
MOST_LAYERS = 1_000
MOST_CLASSES = 1_000_000
LARGEST_SIZE = 1_000_000  # of any other count or length in a config
MOST_PARAMETERS = 20e9  # of one tower
MOST_MEL_BINS = 4_096  # mel bins of a filter bank
LAYER_WORDS = ("layer", "depth", "block", "stage")
SHOWN = 3  # names in a message
REMEDY = "push or save the model again, configs and weights together"


def check_head(config: dict[str, Any], name: str, trust_remote_code: bool) -> None:
    """Reject a model whose fusion head is in its own Python file, unless the user allows its code to run.

    Args:
        config: Content of the model's `config.json`.
        name: Name of the repository or folder, for the message.
        trust_remote_code: True if the user allows the code to run.

    Raises:
        HubError: the code is not allowed to run; the message names the file and the option.
    """
    from hf_mmbalance.model.configuration_mmbalance import FUSION_NAME  # not at the top: it imports transformers

    fusion = str(config.get("fusion", ""))
    file = fusion.partition(":")[0]
    # The config itself rejects a name that points outside the model's folder.
    if ":" in fusion and FUSION_NAME.fullmatch(fusion) and not trust_remote_code:
        raise HubError(
            f"{name} has its own fusion head: read its {file.removesuffix('.py')}.py, and if you trust it pass"
            " trust_remote_code=True"
        )


def check_config(config: dict[str, Any], name: str, file: str = "config.json") -> None:
    """Reject a config whose model or processor would block the machine or fill its memory.

    Args:
        config: Content of the file.
        name: Name of the repository or folder, for the message.
        file: Name of the file, for the message.

    Raises:
        ValueError: a limit is exceeded; the message names the field, its value and the limit.
    """
    if len(config.get("id2label") or {}) > MOST_CLASSES:
        raise ValueError(f"{name}: {file} names {len(config['id2label']):,} classes, at most {MOST_CLASSES:,}")
    for field, value in _numbers({key: value for key, value in config.items() if key not in ("id2label", "label2id")}):
        most = _limit(field.split(".")[-1], value)
        if not abs(value) <= most:
            raise ValueError(f"{name}: {file} asks for {field}={value:,}, the limit is {most:,}")
    for tower in ("audio_config", "vision_config"):
        count = _estimated_parameters(config.get(tower) or {})
        if count > MOST_PARAMETERS:
            text = f"{name}: {tower} in {file} describes about {count / 1e9:,.0f} billion parameters"
            raise ValueError(f"{text}, the limit is {MOST_PARAMETERS / 1e9:.0f} billion")


def _limit(field: str, value: int | float) -> int:
    if field == "num_mel_bins":
        return MOST_MEL_BINS
    counts_layers = isinstance(value, int) and any(word in field for word in LAYER_WORDS)
    return MOST_LAYERS if counts_layers else LARGEST_SIZE


def check_processor(processor: Any, name: str) -> None:
    """Reject a processor that cannot prepare a simple clip, or whose output is not finite.

    Args:
        processor: An `MMBalanceProcessor`.
        name: Name of the repository or folder, for the message.

    Raises:
        ValueError: the processor does not work; the message says what failed.
    """
    wave = np.sin(np.arange(1_600) / 8).astype(np.float32)  # 0.1 s, which fits any tower
    frames = np.full((3, 32, 32, 3), 128, np.uint8)
    try:
        span = {"start": 0.0, "end": 0.1}  # without a span, a model trained on spans warns
        inputs = processor(audio=wave, sampling_rate=16_000, frames=frames, return_tensors="np", **span)
    except Exception as error:
        text = f"{name}: processor_config.json does not define a working processor ({type(error).__name__}: {error})"
        raise ValueError(f"{text}; {REMEDY}") from error
    odd = [key for key, value in inputs.items() if not np.isfinite(np.asarray(value)).all()]
    if odd:
        raise ValueError(f"{name}: with processor_config.json {', '.join(odd)} are not finite numbers; {REMEDY}")


def _numbers(value: Any, field: str = "") -> Iterator[tuple[str, int | float]]:
    """Yield every number of a nested config with its dotted name."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _numbers(entry, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list):
        for entry in value:
            yield from _numbers(entry, field)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield field, value


def _estimated_parameters(tower: dict[str, Any]) -> float:
    """Estimate the parameters: per layer, 4 matrices of hidden x hidden (attention) and 2 of hidden x intermediate."""
    layers, hidden = (tower.get(key) for key in ("num_hidden_layers", "hidden_size"))
    if not isinstance(layers, int) or not isinstance(hidden, int):
        return 0.0
    inner = tower.get("intermediate_size")
    return float(layers) * hidden * (4 * hidden + 2 * (inner if isinstance(inner, int) else 4 * hidden))


def check_loaded(loading: dict[str, Any], name: str) -> None:
    """Reject weights that do not match the config, since missing weights would be random.

    Args:
        loading: Loading info of `from_pretrained(..., output_loading_info=True)`.
        name: Name of the repository or folder, for the message.

    Raises:
        ValueError: weights are missing or have a wrong shape; the message names some of them.
    """
    shapes = [f"{key} is {tuple(found)}, not {tuple(wanted)}" for key, found, wanted in loading["mismatched_keys"]]
    if shapes:
        raise ValueError(f"{name}: {len(shapes)} weights have a different shape than config.json says"
                         f" ({'; '.join(shapes[:SHOWN])}); {REMEDY}")  # fmt: skip
    missing = sorted(loading["missing_keys"])
    if missing:
        shown = ", ".join(missing[:SHOWN])
        raise ValueError(f"{name}: {len(missing)} weights are not in its files, e.g. {shown}; {REMEDY}")
