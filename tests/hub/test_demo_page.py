"""The demo's page: what it says of an answer, and that it asks the model what the switches say."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


DEMO = Path(__file__).parents[2] / "hf_mmbalance" / "hub" / "demo"


@pytest.fixture(autouse=True)
def demo_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(DEMO))
    yield
    for name in ("answer", "app"):
        sys.modules.pop(name, None)


@pytest.fixture
def answer():
    return importlib.import_module("answer")


def row(label: str, score: float, audio: float | None, vision: float | None, share: float | None = 0.25) -> dict:
    shares = None if share is None else {"audio": share, "vision": 1 - share}
    return {"label": label, "score": score, "share": shares, "modality_score": {"audio": audio, "vision": vision}}


BOTH = [row("cat", 0.7, 0.2, 0.9), row("dog", 0.3, 0.8, 0.1, 0.5)]


def test_words_name_every_opinion_and_the_shares(answer):
    assert answer.sentences(BOTH, BOTH, []) == [
        "Sound by itself predicts dog (80 %), picture by itself predicts cat (90 %).",
        "For cat the decision weighs sound 25 % and picture 75 %.",
    ]


def test_words_compare_with_the_answer_before_the_switch(answer):
    heard = [row("dog", 0.8, 0.8, None, 1.0), row("cat", 0.2, 0.2, None, 1.0)]
    assert answer.sentences(heard, BOTH, ["vision"]) == ["Picture is switched off. With it the answer was cat (70 %)."]
    same = [row("cat", 0.9, None, 0.9, 0.0), row("dog", 0.1, None, 0.1, 0.0)]
    text = "Sound is switched off. With it the answer was also cat (70 %)."
    assert answer.sentences(same, BOTH, ["audio"]) == [text]


def test_a_clip_without_sound_and_a_head_without_weights(answer):
    silent = [row("cat", 0.9, None, 0.9, None)]
    assert answer.sentences(silent, silent, []) == ["The clip has no sound."]
    html = answer.render(silent, silent, [])
    assert "mm-share" not in html and 'title="sound by itself: not there"' in html


def test_bars_are_as_long_as_the_numbers(answer):
    html = answer.render(BOTH, BOTH, [])
    for bar in ('mm-decision" style="width:70.0%', 'mm-audio" style="width:20.0%', 'mm-vision" style="width:90.0%'):
        assert bar in html
    assert html.count("<section>") == 2 and "flex-grow:0.2500" in html and "flex-grow:0.7500" in html
    assert answer.percent(0.004) == "<1 %" and answer.percent(0.0) == "0 %" and answer.percent(1.0) == "100 %"


def test_labels_of_a_model_are_not_run_as_html(answer):
    evil = [row("<img src=x onerror=alert(1)>", 1.0, 1.0, 1.0)]
    assert "<img" not in answer.render(evil, evil, []) and "<img" not in answer.hint("<img>")


def test_many_classes_are_summed_up(answer):
    rows = [row(f"c{i}", 0.05, 0.05, 0.05) for i in range(20)]
    html = answer.render(rows, rows, [])
    assert html.count("<section>") == answer.SHOWN and "12 more classes have 60 % together." in html


class Classifier:
    """Stands for the pipeline: notes what it is asked."""

    def __init__(self):
        self.model = SimpleNamespace(config=SimpleNamespace(modalities=["audio", "vision"], num_labels=2))
        self.asked: list[tuple] = []

    def __call__(self, clip, *, top_k, modalities, max_seconds):
        self.asked.append((Path(clip).name, top_k, tuple(modalities)))
        if "broken" in clip:
            raise ValueError(f"{clip}: not a media file")
        return BOTH if len(modalities) == 2 else [row("dog", 0.8, 0.8, None, 1.0)]


@pytest.fixture
def page(monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hf_mmbalance[demo]'")
    monkeypatch.setenv("MMBALANCE_MODEL", "me/model")
    monkeypatch.setenv("MMBALANCE_REVISION", "0123456789abcdef")
    app = importlib.import_module("app")
    classifier = Classifier()
    return app.make_page(classifier, []), classifier


def test_the_page_and_its_readme_open_with_the_same_words():
    (intro,) = re.findall(r'INTRO = """(.*?)"""', (DEMO / "app.py").read_text(encoding="utf-8"), re.DOTALL)
    assert intro in (DEMO / "README.md").read_text(encoding="utf-8")


def test_the_page_answers_by_the_switches(page):
    blocks, classifier = page
    (show,) = {function.fn for function in blocks.fns.values() if function.fn.__name__ == "show"}
    assert "Pick an example" in show(None, ["audio", "vision"]) and "at least one" in show("/tmp/x.mp4", [])
    assert classifier.asked == []
    assert "<b>cat</b>" in show("/tmp/x.mp4", ["vision", "audio"])
    assert "<b>dog</b>" in show("/tmp/x.mp4", ["audio"]) and "With it the answer was cat" in show(
        "/tmp/x.mp4", ["audio"]
    )
    assert classifier.asked == [("x.mp4", 2, ("audio", "vision")), ("x.mp4", 2, ("audio",))], "kept, not asked again"
    text = show("/tmp/secret-folder/broken.mp4", ["audio"])
    assert "broken.mp4: not a media file" in text and "secret-folder" not in text and "mm-error" in text


def test_clips_stay_for_an_hour_at_most(page):
    """As the page says: what is looked at every so many seconds, and then deleted if older than so many."""
    blocks, _ = page
    assert 0 < sum(blocks.delete_cache) <= 3600


def test_without_a_model_or_trust_it_says_what_to_set(page, monkeypatch):
    app = sys.modules["app"]
    monkeypatch.setitem(sys.modules, "hf_mmbalance.hub", None)
    with pytest.raises(SystemExit, match="MMBALANCE_TRUST_REMOTE_CODE=1"):
        app.load()
    monkeypatch.delenv("MMBALANCE_MODEL")
    with pytest.raises(SystemExit, match="Set MMBALANCE_MODEL"):
        app.load()
