"""Commands in README and docs/ are understood; the Python of the first pages runs in the order in which it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoModelForAudioClassification, AutoModelForImageClassification

from hf_mmbalance import MMBalanceProcessor
from hf_mmbalance.cli import build_parser
from hf_mmbalance.training.arguments import option_names, parse_arguments
from tests.media_factory import write_clip
from tests.model.tiny import AUDIO, VISION, tiny_model


ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
}
README = PAGES["README.md"]


def test_the_two_commands_that_ci_runs_are_there() -> None:
    for name, words in (("run", "accelerate launch train.py"), ("test", "pytest")):
        block = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```\n<!-- end -->", README, flags=re.DOTALL)
        assert block is not None and words in block[1]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder with the clips, the table and the config that commands name."""
    monkeypatch.chdir(tmp_path)
    Path("my_clips/dog").mkdir(parents=True)
    write_clip(Path("my_clips/dog/1.mp4"))
    Path("clips.csv").write_text("path,label\nclip.mp4,dog\n")
    Path("mine.yaml").write_text("dataset: clips.csv\n")
    return tmp_path


@pytest.fixture
def place(files: Path) -> Path:
    """The same with a run of tiny towers, and tiny classifiers with labels of the two of the Hub."""
    write_clip(Path("clip.mp4"))
    run = files / "outputs" / "synthetic-20260101"
    model = tiny_model()
    model.save_pretrained(run)
    MMBalanceProcessor.from_backbones(model.config.audio_config, model.config.vision_config).save_pretrained(run)
    for name, tower, kind, labels in (
        ("MIT/ast", AUDIO, AutoModelForAudioClassification, ["Speech", "Acoustic guitar", "Violin, fiddle"]),
        ("google/vit", VISION, AutoModelForImageClassification, ["violin, fiddle", "goldfish", "acoustic guitar"]),
    ):
        kind.from_config(AutoConfig.for_model(**tower, id2label=dict(enumerate(labels)))).save_pretrained(name)
    return files


@pytest.mark.parametrize("page", ["README.md", "docs/start.md", "docs/own_clips.md"])
def test_the_python_of_a_page_runs_in_its_order(page: str, place: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(re.sub(r'"(MIT/ast|google/vit)[^"]*"', r'"\1"', block), names)  # noqa: S102
    assert list(names["model"].config.modalities) == ["audio", "vision"]


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_sound_of_a_first_example_fits_the_first_run(page: str) -> None:
    """A longer one than its towers accept starts the example with a warning."""
    sizes = [int(size) for size in re.findall(r"^wave = .*?(\d{4,})", PAGES[page], flags=re.M)]
    config = yaml.safe_load((ROOT / "hf_mmbalance/configs/synthetic.yaml").read_text())
    assert sizes and max(sizes) <= 160 * config["audio_config"]["max_length"]  # spectrogram frames of 10 ms at 16 kHz


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_understood(page: str, files: Path) -> None:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", PAGES[page], flags=re.DOTALL))
    for line in re.findall(r"^mmbalance (?!train )(.*)$", blocks, flags=re.M):
        build_parser().parse_args(shlex.split(line, comments=True))
    for line in re.findall(r"^(?:accelerate launch train.py|mmbalance train) (.+)$", blocks, flags=re.M):
        parse_arguments(shlex.split(line, comments=True))


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    verbs = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    known = {name for parser in verbs.values() for action in parser._actions for name in action.option_strings}
    known |= {f"--{name}" for name in (*option_names(), "config", "help_all", "version")}
    scripts = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("dataset_scripts/*.py"), *ROOT.glob("tests/fuzz/*.py")]
    for script in (*scripts, *(ROOT / "hf_mmbalance").glob("*/*.py")):
        known |= set(re.findall(r"\(\s*\"(--[a-z]\w+)\"", script.read_text()))
    return known | {"--config_file", "--logdir"}  # of accelerate, of tensorboard


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_exists(page: str, known_options: set[str]) -> None:
    assert set(re.findall(r"(?<![\w-])--[a-z]\w+", PAGES[page])) <= known_options


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists(), link


def test_the_contents_name_headings() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^## (.*)$", README, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings
