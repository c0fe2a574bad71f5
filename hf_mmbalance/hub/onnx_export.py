"""`mmbalance export onnx`: write a trained model as one ONNX file, for programs without Python."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from hf_mmbalance import console
from hf_mmbalance.json_files import write_json


EXPORT = """Export a trained model: spectrogram and frames go in, the decision and its parts come out.

Inputs are the outputs of the model's processor: input_values (B, frames, mel bins), pixel_values (B, T, 3, H, W),
frame_mask (B, T) and modality_mask (B, 2), which is 0 where a clip has no audio or no frames. NAME.json, written
beside the file, lists the classes and the processor's settings. Needs `pip install 'hf_mmbalance[onnx]'`.

example:
  mmbalance export onnx outputs/my-run model.onnx
"""
TOLERANCE = 1e-4
OUTPUTS = ("logits", "modality_logits", "modality_weights", "modality_contributions", "modality_trust")


def add_export(verbs: Any) -> None:
    """Add the verb `export`."""
    parser = console.add_verb(verbs, "export", EXPORT, run_export)
    parser.add_argument("format", choices=["onnx"], help="format of the file")
    parser.add_argument("model", metavar="RUN|ID", help="run folder, or repository on the Hub")
    parser.add_argument("file", type=Path, metavar="FILE.onnx", help="file to write")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the file of a fusion head saved with the"
                        " model")  # fmt: skip
    console.add_json_option(parser, "description")


def run_export(arguments: argparse.Namespace) -> int:
    """Run `export` and return the exit status."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise console.UserError(f"{' and '.join(missing)} not installed: `pip install 'hf_mmbalance[onnx]'`")
    from hf_mmbalance._environment import check_torchaudio
    from hf_mmbalance.hub.predict import load_classifier

    if arguments.file.suffix != ".onnx" and not arguments.file.is_dir():  # NAME.json is written beside it
        raise console.UserError(f"{arguments.file}: the file name must end in .onnx")
    for place in (arguments.file, arguments.json):
        console.check_place(place)
    check_torchaudio()
    classifier = load_classifier(arguments.model, arguments.revision, arguments.trust_remote_code, "cpu")
    found = export_onnx(classifier.model, classifier.processor, arguments.file)
    difference = found["largest_difference"]
    checked = "not checked (onnxruntime is not installed)" if difference is None else f"{difference:.1e}"
    if console.shows_text(arguments):
        console.say(f"wrote {arguments.file}; largest difference from the model: {checked}")
    console.write_result(arguments.json, found)
    return console.DONE


def export_onnx(model: Any, processor: Any, file: Path) -> dict[str, Any]:
    """Write the model as ONNX with torch's exporter, and a description beside it.

    Args:
        model: an `MMBalanceForAudioVisualClassification` on the CPU.
        processor: its processor.
        file: file to write; weights above 2 GB go to a second file beside it.

    Returns:
        The description: classes, modalities, names and shapes of inputs, names of outputs, the processor's settings,
        and `largest_difference` between any output and the model's own (None without onnxruntime).

    Raises:
        UserError: the audio tower is not an AST, the model was trained on one modality only, or the exported model's
            outputs differ from the model's by more than 1e-4. Nothing is written in these cases.
    """
    import torch

    _check_exportable(model)
    inputs = example_inputs(processor, clips=2)
    wrapped = _module(model).eval()
    batch, time = torch.export.Dim("batch", min=1), torch.export.Dim("time", min=1)
    shapes = {"input_values": {0: batch}, "pixel_values": {0: batch, 1: time}, "frame_mask": {0: batch, 1: time},
              "modality_mask": {0: batch}}  # fmt: skip
    with torch.no_grad():
        names = [name for name, value in zip(OUTPUTS, wrapped.everything(**inputs), strict=True) if value is not None]
    file.parent.mkdir(parents=True, exist_ok=True)
    # In a temporary folder until it is checked, but under its final name, which its reference to a weights file uses.
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=file.parent) as folder:
        draft = Path(folder) / file.name
        _write(wrapped, draft, inputs, names, shapes, external_data=_is_large(model))
        difference = largest_difference(wrapped, draft, example_inputs(processor, clips=3, seed=1), names)
        if difference is not None and not difference <= TOLERANCE:
            raise console.UserError(f"{file} is not written: its outputs differ from the model's by {difference:.1e}")
        for made in Path(folder).iterdir():
            os.replace(made, file.parent / made.name)
    found = {
        "classes": [model.config.id2label[index] for index in range(model.config.num_labels)],
        "modalities": list(model.config.modalities),
        "inputs": {name: ["batch", *("time" if n in shapes[name] else size for n, size in
                   enumerate(value.shape) if n)] for name, value in inputs.items()},
        "outputs": names,
        "largest_difference": difference,
        "processor": processor.to_dict(),
    }  # fmt: skip
    write_json(file.with_suffix(".json"), found)
    return found


def _check_exportable(model: Any) -> None:
    config = model.config
    if config.untrained_modalities:
        unused = ", ".join(config.untrained_modalities)
        raise console.UserError(
            f"the model ignores {unused}, which no train clip had: only models that use both can be exported"
        )
    if config.audio_config.model_type != "audio-spectrogram-transformer":
        kind = config.audio_config.model_type
        raise console.UserError(f"the audio tower is {kind!r}: only models with an AST can be exported")


def _write(wrapped: Any, file: Path, inputs: dict[str, Any], names: list[str], shapes: Any, **options: Any) -> None:
    import torch

    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # torchvision's operators
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*The axis name: .* will not be used")
        torch.onnx.export(
            wrapped, (), str(file), kwargs=inputs, dynamo=True, dynamic_shapes=shapes, input_names=list(inputs),
            output_names=names, verbose=False, **options,
            custom_translation_table={torch.ops.aten._cdist_forward.default: _distances},
        )  # fmt: skip


def example_inputs(processor: Any, clips: int, seed: int = 0) -> dict[str, Any]:
    """Process clips of noise to get example inputs; every second clip's audio is marked as missing."""
    import numpy as np
    import torch

    rng = np.random.default_rng(seed)
    count = int((processor.reading or {}).get("frames") or 4)
    rate = processor.audio_sampling_rate
    waves = [0.1 * rng.standard_normal(rate // 10).astype("float32") for _ in range(clips)]
    frames = [list(rng.integers(0, 256, (count, 32, 32, 3), dtype="uint8")) for _ in range(clips)]
    span = {"start": 0.0, "end": 0.1}  # without a span, a model trained on spans warns
    made = processor(audio=waves, frames=frames, sampling_rate=rate, return_tensors="pt", **span)
    mask = torch.ones(clips, 2, dtype=torch.int64)
    mask[1::2, 0] = 0
    inputs = {name: made[name] for name in ("input_values", "pixel_values", "frame_mask")}
    return inputs | {"frame_mask": inputs["frame_mask"].bool(), "modality_mask": mask}


def largest_difference(wrapped: Any, file: Path, inputs: dict[str, Any], names: list[str]) -> float | None:
    """Return the largest difference in any output between model and file; None if onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        ours = wrapped(**inputs)
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(theirs, ours, strict=True))


def _distances(x1: Any, x2: Any, p: float, compute_mode: Any = None) -> Any:
    """Translate Euclidean distances between rows for the exporter, which does not know them; typicality needs them."""
    from onnxscript import opset18 as op

    return op.ReduceL2(op.Sub(op.Unsqueeze(x1, [-2]), op.Unsqueeze(x2, [-3])), [-1], keepdims=0)


def _is_large(model: Any) -> bool:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values()) > 1.5e9


def _module(model: Any) -> Any:
    """Wrap the model in a module whose inputs and outputs are tensors."""
    import torch

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def everything(self, **inputs: Any) -> list[Any]:
            found = self.model(**inputs)
            return [found[name] if name in found else None for name in OUTPUTS]

        def forward(self, input_values: Any, pixel_values: Any, frame_mask: Any, modality_mask: Any) -> Any:
            found = self.everything(input_values=input_values, pixel_values=pixel_values, frame_mask=frame_mask,
                                    modality_mask=modality_mask)  # fmt: skip
            return tuple(value for value in found if value is not None)

    return Exported()
