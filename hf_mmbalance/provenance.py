"""Origin of a trained model: data and their revision, backbones, code, and the command that trained it."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hf_mmbalance
from hf_mmbalance.data.clips import ClipSplits
from hf_mmbalance.data.sources.hub import HubOptions
from hf_mmbalance.scrubbing import scrub


def provenance(
    clips: ClipSplits,
    source: Any,
    base_models: list[dict[str, str | None]],
    command: str,
    processes: int,
) -> dict[str, Any]:
    """Return everything that a model card says about the model's origin, as plain values.

    Args:
        clips: clips that were used.
        source: options with which they were loaded.
        base_models: return value of `base_model` for each model.
        command: command that can be run again, without secrets.
        processes: number of processes.
    """
    return {
        "data": data_source(clips, source),
        "base_models": base_models,
        "command": command,
        "processes": processes,
        "code": code_version(),
    }


def data_source(clips: ClipSplits, source: Any) -> dict[str, Any]:
    """Return the data's name, commit on the Hub (None if they are not from there), fingerprint, counts and notes."""
    on_hub = clips.commit is not None or (isinstance(source, HubOptions) and not Path(clips.name).exists())
    return {
        "name": clips.name if on_hub else os.path.basename(os.path.abspath(clips.name)),
        "on_hub": on_hub,
        "revision": clips.commit,
        "fingerprint": fingerprint(clips),
        "splits": {
            split: {"clips": len(part), "groups": len(set(part.groups))} for split, part in clips.splits.items()
        },
        "notes": list(clips.notes),
    }


def fingerprint(clips: ClipSplits) -> str:
    """Return a short hash of the clips' ids, split by split: it is the same for the same clips, labels and splits."""
    digest = hashlib.sha256()
    for split, part in clips.splits.items():
        digest.update(f"{split}\0{part.classes}\0".encode())
        for clip in zip(part.ids, part.groups, part.labels, strict=True):
            digest.update(f"{clip}\0".encode())
    return digest.hexdigest()[:16]


def base_model(modality: str, name: str, revision: str | None) -> dict[str, str | None]:
    """Describe a pretrained tower, or a trained model (modality `whole`), with its commit if it is from the Hub."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    commit = None
    if not Path(name).exists():
        # It has just been loaded, so that the cache knows its commit and no request to the Hub is needed.
        file = cached_file(
            name,
            "config.json",
            revision=revision or "main",
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        commit = extract_commit_hash(file, None)
    return {"modality": modality, "name": name, "revision": commit}


def command(words: list[str]) -> str:
    """Return a command line that can be run again, with secrets removed."""
    return scrub(shlex.join(words))


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the libraries that a result depends on."""
    packages = ("torch", "torchaudio", "transformers", "datasets", "accelerate", "numpy")
    found = {package: version(package) for package in packages}
    return {"hf_mmbalance": hf_mmbalance.__version__, "python": platform.python_version(), **found}


def code_version() -> str:
    """Return the version of this package and, in a git checkout, its commit."""
    version = f"hf_mmbalance {hf_mmbalance.__version__}"
    root = Path(hf_mmbalance.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return version
    try:
        commit, changed = (
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}, commit {commit}" + (", with uncommitted changes" if changed else "")
