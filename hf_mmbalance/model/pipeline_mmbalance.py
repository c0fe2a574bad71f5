"""`pipeline("audio-visual-classification")`: classify clips, with the share of each modality in the decision."""

import dataclasses
import numbers
import os
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers.pipelines.base import ChunkPipeline
from transformers.pipelines.pt_utils import KeyDataset, PipelineChunkIterator, PipelineIterator, PipelinePackIterator

from .media_request_mmbalance import LIMITS
from .reading_mmbalance import Clip, span_of
from .windows_mmbalance import windows


TASK = "audio-visual-classification"
LIMIT_OPTIONS = ("max_seconds", "max_pixels", "max_bytes")
READER_OPTIONS = ("modalities", "window_seconds", "stride_seconds", *LIMIT_OPTIONS)


class AudioVisualClassificationPipeline(ChunkPipeline):
    """
    Pipeline that classifies clips by audio and frames, and reports how much each modality counted.

    ```python
    >>> from transformers import pipeline

    >>> classifier = pipeline("audio-visual-classification", model="me/my-model", trust_remote_code=True)
    >>> classifier("clip.mp4", top_k=1)
    [{'label': 'angry', 'score': 0.81,
      'share': {'audio': 0.62, 'vision': 0.38},
      'modality_score': {'audio': 0.74, 'vision': 0.55},
      'trust': {'audio': 0.74, 'vision': 0.58}}]
    ```

    Clips are read as in training (`processor.reading`). A clip that is longer than all training clips and than the
    audio tower's input is read in windows as long as that input, each with its own evenly spaced frames. The numbers
    returned are means over the windows; numbers about one modality are means over the windows that have it.
    """

    model: Any  # its class is defined by the saved code, which a type checker does not see
    processor: Any

    _load_processor = True  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # transformers' pipeline() replaces the names in the config with classes, which cannot be saved again.
        self.model.config.custom_pipelines = custom_pipelines()

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # no further positional arguments
        """Classify one clip or many.

        Args:
            inputs: One clip or many. A clip is a path or http(s) address of a video or audio file, its bytes, or a
                dict. The dict has `video`, or at least one of `audio` (with `sampling_rate`, if it is an array) and
                `frames` (or `images`); add `start` and `end` (seconds) to classify only a span. For many clips, pass a
                list, a generator or a dataset of clips; other columns of a dataset are ignored.
            top_k (`int`, *optional*, defaults to 5): Number of most probable classes to return.
            modalities (`str` or `list[str]`, *optional*): Use only these; all others are treated as missing.
            window_seconds (`float`, *optional*): Length of the windows in which a long clip is read. Default: the
                input length of the audio tower if that is fixed, else the complete clip.
            stride_seconds (`float`, *optional*): Step between windows. By default, they do not overlap. The last one
                ends where the clip ends.
            max_seconds (`float`, *optional*, defaults to 600): Maximum length of a clip.
            max_pixels (`int`, *optional*, defaults to 7680 x 4320): Maximum size of a frame.
            max_bytes (`int`, *optional*, defaults to 2 GiB): Maximum size of a download, and of a decoded window.
            batch_size (`int`, *optional*, defaults to 1): Windows per forward pass, from one or several clips.
            num_workers (`int`, *optional*, defaults to 0): With 1, a separate process reads clips during forward
                passes.

        Returns:
            For one clip, a list of dicts, most probable class first. For a list of clips, a list of such lists; for a
            generator or dataset, an iterator over them. Each dict has

            - `label` (`str`): name of the class;
            - `score` (`float`): probability of that class;
            - `share` (`dict[str, float]` or None): share of each modality in the decision's weight for that class,
              0 if its weight is negative; None for fusion heads without weights;
            - `modality_score` (`dict[str, float | None]`): probability of that class from each modality alone; None
              where it is missing;
            - `trust` (`dict[str, float | None]` or None): calibrated probability that each modality by itself is right
              about this clip; None for fusion heads without it.

        Raises:
            MediaError: (a ValueError) if a file cannot be used; `.reason` says why.
            ValueError: if a clip or option is invalid.
        """
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        if isinstance(inputs, KeyDataset):
            inputs = KeyDataset(_undecoded(inputs.dataset), inputs.key)
        elif isinstance(inputs, Dataset):  # torch's class; a streamed dataset of `datasets` is a subclass of it
            inputs = _undecoded(inputs)
        elif not isinstance(inputs, (str, bytes, bytearray, os.PathLike, Mapping, list, types.GeneratorType)):
            inputs = _as_dataset(inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self, top_k: int | None = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = set(options) - set(READER_OPTIONS)
        if unknown:
            raise TypeError(
                f"{TASK}: unknown option {sorted(unknown)[0]!r}; the options are top_k, batch_size, num_workers,"
                f" {', '.join(READER_OPTIONS)}"
            )
        options = {name: value for name, value in options.items() if value is not None}
        if "modalities" in options:
            options["modalities"] = self._modalities(options["modalities"])
        if top_k is not None and not (isinstance(top_k, numbers.Integral) and top_k >= 1):
            raise ValueError(f"top_k={top_k!r} must be a whole number, at least 1")
        return options, {}, {} if top_k is None else {"top_k": top_k}

    def _modalities(self, chosen: str | list[str]) -> tuple[str, ...]:
        known = self.model.config.modalities
        names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
        if not names or not set(names) <= set(known):
            raise ValueError(f"modalities={list(names)!r}: choose one or more of {list(known)}")
        return names

    def preprocess(self, input_: Any, **options: Any) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the inputs (windows) of one clip, with the last one marked."""
        spec = self.processor.spec
        limits = dataclasses.replace(LIMITS, **{name: options.pop(name) for name in LIMIT_OPTIONS if name in options})
        if "window_seconds" not in options:
            # A clip no longer than the longest training clip is one input, as in training.
            options |= {"window_seconds": self.processor.audio_seconds, "longest": spec.longest_seconds}
        clips = windows(input_, spec, limits=limits, **options)
        clip = next(clips)
        seconds = clip.seconds
        for following in clips:
            yield {"clip": clip, "is_last": False}
            clip, seconds = following, seconds + following.seconds
        self.processor.warn_of_longer([seconds], spans=span_of(input_) is not None)
        yield {"clip": clip, "is_last": True}

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        clips: list[Clip] = [item["clip"] for item in items]
        return {**self.processor.tensors(clips), "is_last": torch.tensor([item["is_last"] for item in items])}

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> PipelineIterator:
        """Iterate as in the base class, but let the processor make the batches: it handles missing modalities."""
        chunks = PipelineChunkIterator(inputs, self.preprocess, preprocess_params)
        batches = DataLoader(chunks, batch_size=batch_size, num_workers=min(num_workers, 1), collate_fn=self._collate)
        clips = PipelinePackIterator(batches, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(clips, self.postprocess, postprocess_params)

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> dict[str, Any]:  # type: ignore[override]
        is_last = input_tensors.pop("is_last")
        outputs = self.model(**input_tensors)
        present = outputs.modality_mask.bool()
        single = [self._probabilities_from(outputs, present, modality) for modality in range(present.shape[1])]
        share = outputs.modality_weights
        if share is not None:
            share = share.clamp(min=0.0)  # energy weights (`qmf`) can be negative
            share = share / share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        return {
            "score": outputs.logits.float().softmax(-1),
            "modality_score": torch.stack(single, dim=1),
            "share": share,
            "trust": outputs.get("modality_trust"),
            "present": present,
            "is_last": is_last,
        }

    def _probabilities_from(self, outputs: Any, present: torch.Tensor, modality: int) -> torch.Tensor:
        """Return probabilities `(B, C)` from one modality only; meaningless for clips without it."""
        only = torch.zeros_like(present)
        only[:, modality] = True
        only = torch.where(present[:, modality : modality + 1], only, present)
        fused = self.model.fusion(outputs.modality_logits, only, self.model.fusion.features_read(outputs))
        return fused.logits.float().softmax(-1)

    def postprocess(  # type: ignore[override]
        self, model_outputs: list[dict[str, Any]], top_k: int = 5
    ) -> list[dict[str, Any]]:
        """Average over the windows of a clip, and return its most probable classes."""
        config = self.model.config
        score, modality_score, present = (
            torch.cat([window[name] for window in model_outputs]) for name in ("score", "modality_score", "present")
        )
        mean = score.mean(0)
        counts = present.sum(0)
        single = (modality_score * present.unsqueeze(-1)).sum(0) / counts.clamp(min=1).unsqueeze(-1)
        share = trust = None
        if model_outputs[0]["share"] is not None:
            share = torch.cat([window["share"] for window in model_outputs]).float().mean(0)
        if model_outputs[0]["trust"] is not None:
            trust = torch.cat([window["trust"] for window in model_outputs]).float().sum(0) / counts.clamp(min=1)
        return [
            {
                "label": config.id2label[index],
                "score": float(mean[index]),
                "share": None
                if share is None
                else {name: float(share[m, index]) for m, name in enumerate(config.modalities)},
                "modality_score": {
                    name: float(single[m, index]) if counts[m] else None for m, name in enumerate(config.modalities)
                },
                "trust": None
                if trust is None
                else {name: float(trust[m]) if counts[m] else None for m, name in enumerate(config.modalities)},
            }
            for index in mean.topk(min(top_k, config.num_labels)).indices.tolist()
        ]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Save the model with its code and the processor; `pipeline()` loads the folder."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def custom_pipelines() -> dict[str, dict[str, Any]]:
    """Return the entry of a model's config that names the pipeline saved with it."""
    impl = f"{__name__.rpartition('.')[2]}.{AudioVisualClassificationPipeline.__name__}"
    return {TASK: {"impl": impl, "pt": ["AutoModel"], "type": "multimodal"}}


class _IndexedDataset(Dataset):
    """Wraps any object with a length and an index as torch's Dataset, the type that the base class checks for."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self.rows):
            raise IndexError(index)
        return self.rows[index]


def _as_dataset(inputs: Any) -> Any:
    """Wrap an iterable or a different library's dataset; other values are returned unchanged, and rejected later."""
    # An array without a key has no known modality, and a pandas table cannot be indexed by row number.
    if hasattr(inputs, "shape") and (hasattr(inputs, "dtype") or hasattr(inputs, "dtypes")):
        return inputs
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        return _IndexedDataset(_undecoded(inputs))
    if hasattr(inputs, "__iter__"):
        return (item for item in _undecoded(inputs))
    return inputs


def _undecoded(rows: Any) -> Any:
    """Return a dataset of the library `datasets` with its media undecoded, as bytes or paths.

    This package decodes them itself, so torchcodec is not needed, and a video column also yields its audio.
    """
    features = getattr(rows, "features", None) or {}
    if features and hasattr(rows, "decode"):  # a stream decodes before it casts columns
        return rows.decode(False)
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)  # the element type of a list
        if getattr(inner, "decode", False):
            raw = dataclasses.replace(inner, decode=False)
            rows = rows.cast_column(column, raw if inner is feature else dataclasses.replace(feature, feature=raw))
    return rows


__all__ = ["AudioVisualClassificationPipeline"]
