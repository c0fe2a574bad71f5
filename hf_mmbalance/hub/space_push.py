"""Push Spaces: the two `evaluate` modules with their cards, and the demo of a model."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_mmbalance.metrics
from hf_mmbalance.decision.results import RESULTS
from hf_mmbalance.hub.commit import push_folder
from hf_mmbalance.hub.errors import HubError, explain_hub_errors


if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

METRICS = ("calibration_error", "modality_balance")
DEMO = Path(__file__).with_name("demo")
CLIPS = (".mp4", ".webm", ".mov", ".mkv", ".avi")
PLACE = re.compile(r'"me/(\w+)"')  # how the cards of the metrics name the Space


def publish_metric(
    name: str, repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> dict[str, Any]:
    """Push a metric as a Space that `evaluate.load(repo_id)` loads.

    Args:
        name: One of `METRICS`.
        repo_id: `user/name`. The name must be that of the metric, because `evaluate` looks for `<name>.py`.
        private, revision, token: As in `push_folder`.

    Returns:
        `repo`, `url`, `commit`, `tag` (a revision to pin).

    Raises:
        HubError: the name is wrong, or the Hub rejects the push.
    """
    if repo_id.split("/")[-1] != name:
        raise HubError(f"{repo_id}: evaluate looks for <name>.py in a Space, so the Space must be called {name}")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / name
        # Copy, because some files are links to a file that both metrics share.
        shutil.copytree(_of_metrics(name), folder, ignore=shutil.ignore_patterns("__pycache__"))
        tag = _tag_of(folder)
        card = folder / "README.md"
        text = PLACE.sub(f'"{repo_id}", revision="{tag}"', card.read_text(encoding="utf-8"))
        card.write_text(text, encoding="utf-8")
        return _push(folder, repo_id, f"Metric {name} ({tag})", tag, private, revision, token)


def _of_metrics(name: str) -> Path:
    if name not in METRICS:
        raise HubError(f"{name!r} is not a metric of this package; choose one of {', '.join(METRICS)}")
    return Path(hf_mmbalance.metrics.__file__).parent / name


def publish_demo(
    repo_id: str,
    model: str,
    *,
    model_revision: str | None = None,
    trust_remote_code: bool = False,
    examples: Sequence[Path] = (),
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> dict[str, Any]:
    """Push the demo as a Space that shows one model at one revision.

    Args:
        repo_id: `user/name` of the Space.
        model: Repository of the model.
        model_revision: Branch, tag or commit; the Space is pinned to its current commit.
        trust_remote_code: Let the Space run the code in the model's repository.
        examples: Example clips; default: those in the folder `examples/` of the model's repository, or synthetic clips
            for a model trained on synthetic data.
        private, revision, token: As in `push_folder`.

    Returns:
        `repo`, `url`, `commit`, `tag`, `model`, `model_revision`.

    Raises:
        HubError: the model does not exist, an example is not a clip, or the Hub rejects the push.
    """
    from huggingface_hub import HfApi

    _check_examples(examples)
    api = HfApi(token=token, library_name="hf_mmbalance")
    with explain_hub_errors(f"looking up model {model}"):
        info = api.model_info(model, revision=model_revision)
        options = {} if examples else _synthetic_options(api, info)
    with tempfile.TemporaryDirectory() as made:
        folder = _demo_folder(Path(made) / "demo", model, examples, options)
        tag = _tag_of(folder)
        done = _push(folder, repo_id, f"Demo of {model} ({tag})", tag, private, revision, token)
    variables = {
        "MMBALANCE_MODEL": model,
        "MMBALANCE_REVISION": info.sha or "main",
        "MMBALANCE_TRUST_REMOTE_CODE": "1" if trust_remote_code else "0",
    }
    with explain_hub_errors(f"setting the model of Space {done['repo']}"):
        current = {name: variable.value for name, variable in api.get_space_variables(done["repo"]).items()}
        for name, value in variables.items():
            if current.get(name) != value:  # avoid needless changes: each one restarts the Space
                api.add_space_variable(done["repo"], name, value)
    return done | {"model": model, "model_revision": info.sha}


def _check_examples(examples: Sequence[Path]) -> None:
    for clip in examples:
        if clip.suffix.lower() not in CLIPS or not clip.is_file():
            raise HubError(f"{clip} is not a video file; give video files ({', '.join(CLIPS)})")
    names = [clip.name for clip in examples]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise HubError(f"two examples are named {twice}, and both would be examples/{twice}; rename one of them")


def _demo_folder(folder: Path, model: str, examples: Sequence[Path], options: dict[str, Any]) -> Path:
    """Create the files of the Space: the page, and examples that are given or made from synthetic data."""
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("__pycache__", "examples"))
    card = folder / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("models: []", f"models: [{model}]"), encoding="utf-8")
    (folder / "examples").mkdir()
    for clip in examples:
        shutil.copy(clip, folder / "examples" / clip.name)
    if options:
        _make_examples(folder / "examples", options, model)
    return folder


def _synthetic_options(api: HfApi, info: ModelInfo) -> dict[str, Any]:
    """Return the options of the synthetic data a model was trained on; {} for other data, or if it has examples."""
    files = [sibling.rfilename for sibling in info.siblings or []]
    if RESULTS not in files or any(file.startswith("examples/") for file in files):
        return {}
    text = Path(api.hf_hub_download(info.id, RESULTS, revision=info.sha)).read_text(encoding="utf-8")
    try:
        results = json.loads(text)
        return dict(results["arguments"]) if results["dataset"] == "synthetic" else {}
    except (ValueError, LookupError, TypeError) as error:
        raise HubError(_invalid_results(info.id)) from error


def _make_examples(folder: Path, options: dict[str, Any], model: str) -> None:
    from hf_mmbalance.hub.example_clips import synthetic_examples

    try:
        synthetic_examples(folder, options)
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:  # invalid numbers in the model's repository
        raise HubError(f"{_invalid_results(model)} ({error})") from error


def _invalid_results(model: str) -> str:
    return (
        f"results.json of {model} does not have the form that training writes, so no examples can be made; give some"
        " with --examples"
    )


def _tag_of(folder: Path) -> str:
    """Return a tag that identifies the folder's content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"space-{digest.hexdigest()[:10]}"


def _push(
    folder: Path, repo_id: str, message: str, tag: str, private: bool | None, revision: str | None, token: str | None
) -> dict[str, Any]:
    done = push_folder(
        folder,
        repo_id,
        message=message,
        repo_type="space",
        private=private,
        revision=revision,
        token=token,
        delete_patterns=["*"],
        space_sdk="gradio",
        tag=tag,
    )
    return {"repo": done.repo_url.repo_id, "url": done.repo_url.url, "commit": done.oid, "tag": tag}
