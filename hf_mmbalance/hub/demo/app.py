"""Page that shows what a model hears and sees in a clip, and how much each counts in its decision."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from answer import hint, render, word
from huggingface_hub import constants, hf_hub_download, list_repo_files
from transformers import pipeline


HERE = Path(__file__).parent
TASK: Any = "audio-visual-classification"  # not a built-in task of transformers
CLIPS = (".mp4", ".webm", ".mov", ".mkv", ".avi")
MAX_EXAMPLES = 8
MAX_SECONDS = 120.0
INTRO = """# What it hears, what it sees

Upload or record a clip, or pick an example. The page shows an audio-visual model's class probabilities, what sound and
picture each predict by themselves, and the share of each in the decision. Switch one of them off to see how the answer
changes."""


def load() -> Any:
    """Load the model that the environment variables name, as a pipeline."""
    name = os.environ.get("MMBALANCE_MODEL")
    if not name:
        raise SystemExit("Set MMBALANCE_MODEL to the repository (or folder) of a model trained with hf_mmbalance.")
    trusted = os.environ.get("MMBALANCE_TRUST_REMOTE_CODE") == "1"
    if not trusted:
        try:
            from hf_mmbalance.hub import load_classifier  # runs our own code, not the repository's
        except ImportError:
            text = f"The model needs the code in its repository: read {constants.ENDPOINT}/{name}, and if you trust it"
            raise SystemExit(f"{text}, set MMBALANCE_TRUST_REMOTE_CODE=1 (or install hf_mmbalance).") from None
        return load_classifier(name, os.environ.get("MMBALANCE_REVISION"))
    return pipeline(TASK, model=name, revision=os.environ.get("MMBALANCE_REVISION"), trust_remote_code=True)


def find_examples() -> list[str]:
    """Return example clips from the folder `examples/` beside this file, else from that of the model's repository."""
    own = sorted(path for path in (HERE / "examples").glob("*") if path.suffix.lower() in CLIPS)
    name, revision = os.environ["MMBALANCE_MODEL"], os.environ.get("MMBALANCE_REVISION")
    if own or Path(name).is_dir():
        return [str(path) for path in own[:MAX_EXAMPLES]]
    files = [file for file in list_repo_files(name, revision=revision) if file.startswith("examples/")]
    clips = sorted(file for file in files if file.lower().endswith(CLIPS))[:MAX_EXAMPLES]
    return [hf_hub_download(name, file, revision=revision) for file in clips]


def make_page(classify: Any, examples: list[str]) -> gr.Blocks:
    """Build the page for a classifier from `load()`, with example clips."""
    modalities = list(classify.model.config.modalities)

    @lru_cache(maxsize=64)
    def answers(clip: str, chosen: tuple[str, ...]) -> list[dict[str, Any]]:
        classes = classify.model.config.num_labels
        return classify(clip, top_k=classes, modalities=list(chosen), max_seconds=MAX_SECONDS)

    def show(clip: str | None, senses: list[str]) -> str:
        if clip is None:
            return hint("Pick an example, upload a clip or record one.")
        chosen = tuple(name for name in modalities if name in senses)
        if not chosen:
            return hint("Switch on at least one of them.")
        try:
            off = [name for name in modalities if name not in chosen]
            return render(answers(clip, chosen), answers(clip, tuple(modalities)), off)
        except ValueError as error:
            # show the message without the folder of the file
            return hint(str(error).replace(str(Path(clip).parent) + os.sep, ""), "error")

    with gr.Blocks(title="What it hears, what it sees", analytics_enabled=False, delete_cache=(600, 3000)) as page:
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                clip = gr.Video(label="Clip", sources=["upload", "webcam"], include_audio=True, elem_id="clip")
                choices = [(word(name).capitalize(), name) for name in modalities]
                senses = gr.CheckboxGroup(choices, value=modalities, label="What the model may use")
                if examples:
                    gr.Examples([[path] for path in examples], [clip], label="Examples")
            with gr.Column(scale=3, min_width=300):
                answer = gr.HTML(show(None, modalities), padding=False, elem_id="answer")
        gr.Markdown(_foot())
        gr.on([clip.change, senses.change], show, [clip, senses], answer, show_progress="minimal")
    return page


def _foot() -> str:
    name, revision = os.environ["MMBALANCE_MODEL"], os.environ.get("MMBALANCE_REVISION")
    shown = name if Path(name).is_dir() else f"[{name}]({constants.ENDPOINT}/{name})"
    pinned = f" at `{revision[:10]}`" if revision else ""
    return f"Model: {shown}{pinned}. Clips up to {MAX_SECONDS:.0f} s; they are deleted after an hour."


if __name__ == "__main__":
    classifier = load()
    page = make_page(classifier, find_examples())
    # a neutral theme, because colours on the page stand for sound and picture
    theme = gr.themes.Default(primary_hue="slate", font=["system-ui", "sans-serif"])
    page.launch(theme=theme, css_paths=HERE / "style.css", max_file_size="100mb")
