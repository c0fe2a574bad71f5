"""User-defined fusion heads: one file, named in the config, saved with the model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_mmbalance import MMBalanceConfig, MMBalanceForAudioVisualClassification, MMBalanceProcessor
from hf_mmbalance.model import fusion_files_mmbalance
from hf_mmbalance.model.fusion_files_mmbalance import load_fusion_head
from hf_mmbalance.model.fusion_mmbalance import FUSION_HEADS, FusionHead, FusionOutput, register_fusion_head

from .tiny import AUDIO, CLASSES, VISION, run_python, tiny_config, tiny_inputs, tiny_model


HEAD = '''"""A user-defined head."""

try:
    from .fusion_mmbalance import FusionHead, FusionOutput
except ImportError:
    from hf_mmbalance.model.fusion_mmbalance import FusionHead, FusionOutput

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Half(FusionHead):
    def __init__(self, num_modalities, num_labels, feature_sizes=(), start=0.5):
        super().__init__(num_modalities, num_labels, feature_sizes)
        self.scale = nn.Parameter(torch.full((num_labels,), start))

    def forward(self, modality_logits, modality_mask, features=None):
        terms = self.scale * modality_logits.log_softmax(-1) * modality_mask.unsqueeze(-1)
        return FusionOutput(logits=terms.sum(1), modality_contributions=terms)
'''
LOAD = (
    "import sys, torch\n"
    "from transformers import AutoModel\n"
    "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=sys.argv[2] == 'trust').eval()\n"
    "inputs = torch.load(sys.argv[1] + '/inputs.pt')\n"
    "torch.save(model(**inputs).logits, sys.argv[1] + '/logits.pt')\n"
)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch):
    """Heads registered by a test are removed after it."""
    kept = dict(FUSION_HEADS)
    yield
    FUSION_HEADS.clear()
    FUSION_HEADS.update(kept)


@pytest.fixture
def head_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_head.py"
    path.write_text(HEAD)
    return path


def _compose(head_file: Path, **options) -> MMBalanceForAudioVisualClassification:
    config = MMBalanceConfig(audio_config=dict(AUDIO), vision_config=dict(VISION))
    return MMBalanceForAudioVisualClassification.from_backbones(
        config.audio_config, config.vision_config, id2label=CLASSES, fusion=f"{head_file}:Half", **options
    ).eval()


def _saved(head_file: Path) -> tuple[Path, torch.Tensor]:
    model = _compose(head_file, fusion_options={"start": 0.7})
    with torch.no_grad():
        model.fusion.scale.uniform_()
    folder = head_file.parent / "saved"
    model.save_pretrained(folder)
    torch.save(tiny_inputs(), folder / "inputs.pt")
    return folder, model(**tiny_inputs()).logits


def test_a_head_named_by_path_is_used(head_file):
    model = _compose(head_file, fusion_options={"start": 0.25})
    assert model.config.fusion == "my_head:Half"
    out = model(**tiny_inputs(), labels=torch.tensor([0, 1, 2, 3]))
    terms = 0.25 * out.modality_logits.log_softmax(-1)
    torch.testing.assert_close(out.logits, terms.sum(1))
    out.loss.backward()
    assert model.fusion.scale.grad.abs().sum() > 0


def test_the_file_is_copied_and_loads_in_this_process(head_file):
    folder, logits = _saved(head_file)
    assert (folder / "my_head.py").read_text() == HEAD
    assert MMBalanceConfig.from_pretrained(folder).fusion == "my_head:Half"
    again = MMBalanceForAudioVisualClassification.from_pretrained(folder)
    assert torch.equal(again(**tiny_inputs()).logits, logits)


@pytest.mark.parametrize(
    "block",
    [pytest.param(False, id="with the package", marks=pytest.mark.slow), pytest.param(True, id="without the package")],
)
def test_a_saved_head_loads_in_a_new_process(head_file, tmp_path, block):
    folder, logits = _saved(head_file)
    head_file.unlink()
    done = run_python(LOAD, folder, "trust", block=block, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(folder / "logits.pt"), logits, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_a_head_loads_with_the_package_imported_first_and_is_saved_again(head_file, tmp_path):
    folder, logits = _saved(head_file)
    head_file.unlink()
    code = "import hf_mmbalance; hf_mmbalance.MMBalanceConfig\n" + LOAD + "model.save_pretrained(sys.argv[3])\n"
    done = run_python(code, folder, "trust", tmp_path / "again", HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "my_head.py").read_text() == HEAD
    torch.testing.assert_close(torch.load(folder / "logits.pt"), logits, atol=1e-6, rtol=1e-6)


def test_without_trust_the_error_names_module_and_remedy(head_file):
    folder, _ = _saved(head_file)
    FUSION_HEADS.pop("my_head:Half")
    with pytest.raises(
        ValueError, match="fusion head 'Half' of module 'my_head' is not loaded.*trust_remote_code=True"
    ):
        MMBalanceForAudioVisualClassification.from_pretrained(folder)
    load_fusion_head(f"{folder}/my_head.py:Half")  # the remedy that the message names
    MMBalanceForAudioVisualClassification.from_pretrained(folder)


def test_a_missing_file_is_named(head_file):
    folder, _ = _saved(head_file)
    FUSION_HEADS.pop("my_head:Half")
    (folder / "my_head.py").unlink()
    with pytest.raises(
        ValueError, match="fusion head 'Half' is missing: my_head.py was not found in .*saved; put the"
    ):
        MMBalanceForAudioVisualClassification.from_pretrained(folder, trust_remote_code=True)


def test_a_file_without_the_class_is_named(head_file):
    folder, _ = _saved(head_file)
    FUSION_HEADS.pop("my_head:Half")
    (folder / "my_head.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="fusion head 'Half' is missing"):
        MMBalanceForAudioVisualClassification.from_pretrained(folder, trust_remote_code=True)


def test_two_models_with_heads_of_the_same_name_keep_their_own(head_file, tmp_path):
    """The file saved with a model is used, and a model saves the code that it runs."""
    folder, logits = _saved(head_file)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "my_head.py").write_text(HEAD.replace("terms.sum(1)", "2 * terms.sum(1)"))
    load = MMBalanceForAudioVisualClassification.from_pretrained
    first, second = load(folder, trust_remote_code=True), load(other, trust_remote_code=True)
    torch.testing.assert_close(first(**tiny_inputs()).logits, logits)
    torch.testing.assert_close(second(**tiny_inputs()).logits, 2 * logits)
    first.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "my_head.py").read_text() == HEAD


def test_a_module_of_the_same_name_is_not_overwritten(tmp_path):
    (tmp_path / "random.py").write_text(HEAD)
    before = sys.modules["random"]
    assert load_fusion_head(f"{tmp_path}/random.py:Half") == "random:Half"
    assert sys.modules["random"] is before


@pytest.mark.parametrize("name", ["my-head.py", "my.head.py", "fusion_mmbalance.py"])
def test_file_names_that_cannot_be_saved_with_a_model_are_refused(tmp_path, name):
    (tmp_path / name).write_text(HEAD)
    with pytest.raises(ValueError, match=f"rename {name} to letters, digits and underscores"):
        load_fusion_head(f"{tmp_path}/{name}:Half")


def test_bad_names_are_refused(head_file):
    with pytest.raises(FileNotFoundError, match="file .*nowhere.py does not exist"):
        load_fusion_head("nowhere.py:Half")
    head_file.write_text(HEAD + "\n\nclass Other(nn.Module):\n    pass\n")
    with pytest.raises(ValueError, match=r"my_head.py:Other': Other must be derived from FusionHead"):
        load_fusion_head(f"{head_file}:Other")
    with pytest.raises(ValueError, match="my_head.py has no class 'Whole'"):
        load_fusion_head(f"{head_file}:Whole")
    assert load_fusion_head("adaptive") == "adaptive"


@register_fusion_head("test_registered")
class Registered(FusionHead):
    def forward(self, modality_logits, modality_mask, features=None):
        terms = modality_logits * modality_mask.unsqueeze(-1)
        return FusionOutput(logits=terms.sum(1), modality_contributions=terms)


def test_a_registered_head_is_saved_too(tmp_path):
    """Registered by decorator from a module of the user: saved as that module's file and class."""
    FUSION_HEADS["test_registered"] = Registered
    model = tiny_model(fusion="test_registered")
    model.save_pretrained(tmp_path)
    assert MMBalanceConfig.from_pretrained(tmp_path).fusion == "test_fusion_files:Registered"
    assert (tmp_path / "test_fusion_files.py").read_text() == Path(__file__).read_text()
    again = MMBalanceForAudioVisualClassification.from_pretrained(tmp_path)  # registered here: no trust needed
    assert torch.equal(again(**tiny_inputs()).logits, model(**tiny_inputs()).logits)
    del FUSION_HEADS["test_registered"]
    with pytest.raises(ValueError, match="fusion head 'Registered' of module 'test_fusion_files' is not loaded"):
        MMBalanceForAudioVisualClassification.from_pretrained(tmp_path)


def test_a_head_of_main_is_saved_by_name_with_a_warning(tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(fusion_files_mmbalance.logger, "warning", warnings.append)
    FUSION_HEADS["mine"] = type("Mine", (Registered,), {"__module__": "__main__"})
    model = MMBalanceForAudioVisualClassification(tiny_config(fusion="mine"))
    model.save_pretrained(tmp_path)
    assert MMBalanceConfig.from_pretrained(tmp_path).fusion == "mine"
    assert len(warnings) == 1 and "fusion head 'mine' is defined in __main__" in warnings[0]


def test_push_to_hub_while_saving_is_refused(head_file, tmp_path):
    with pytest.raises(ValueError, match="call push_to_hub.. instead"):
        _compose(head_file).save_pretrained(tmp_path / "saved", push_to_hub=True)
    assert not (tmp_path / "saved").exists()


def test_saving_the_processor_does_not_copy_the_file_again(head_file, tmp_path):
    """A folder with model and processor has the head's file once."""
    folder, _ = _saved(head_file)
    config = MMBalanceConfig.from_pretrained(folder)
    MMBalanceProcessor.from_backbones(config.audio_config, config.vision_config).save_pretrained(folder)
    assert [path.name for path in folder.glob("my_head*.py")] == ["my_head.py"]


OTHER_ORDER = '''"""A head that takes the interface from the installed package, though its model's code came along."""

import torch
from safetensors.torch import load_file, save_file
from hf_mmbalance.model.fusion_mmbalance import FusionHead, FusionOutput
from torch import nn
from transformers import initialization as init


class Half(FusionHead):
    def __init__(self, num_modalities, num_labels, feature_sizes=()):
        super().__init__(num_modalities, num_labels, feature_sizes)
        self.scale = nn.Parameter(torch.empty(num_labels))

    def init_weights(self):
        init.constant_(self.scale, 0.7)

    def forward(self, modality_logits, modality_mask, features=None):
        terms = self.scale * modality_logits.log_softmax(-1) * modality_mask.unsqueeze(-1)
        return FusionOutput(logits=terms.sum(1), modality_contributions=terms)
'''


def test_a_head_of_another_copy_of_the_interface_is_initialised_too(head_file, tmp_path):
    head_file.write_text(OTHER_ORDER)
    folder = head_file.parent / "saved"
    model = _compose(head_file)
    assert torch.equal(model.fusion.scale, torch.full((4,), 0.7))
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "fusion.scale"}, folder / "model.safetensors", {"format": "pt"}
    )
    code = (
        "import sys\nfrom transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert type(model).__module__.startswith('transformers_modules'), type(model)\n"
        "print(model.fusion.scale.tolist())\n"
    )
    done = run_python(code, folder, HF_HOME=str(tmp_path / "home"), PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout.strip().splitlines()[-1]) == pytest.approx([0.7] * 4)


@pytest.mark.parametrize("block", [False, True], ids=["with the package", "without the package"])
def test_the_documented_recipe(tmp_path, block):
    text = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    recipe = text.split("## A fusion head of your own")[1].split("```python\n")[1].split("```")[0]
    file = tmp_path / "my_head.py"
    file.write_text(recipe)
    config = MMBalanceConfig(audio_config=dict(AUDIO), vision_config=dict(VISION))
    model = MMBalanceForAudioVisualClassification.from_backbones(
        config.audio_config, config.vision_config, id2label=CLASSES, fusion=f"{file}:ProductFusion"
    ).eval()
    model.save_pretrained(tmp_path / "saved")
    torch.save(tiny_inputs(), tmp_path / "saved" / "inputs.pt")
    done = run_python(LOAD, tmp_path / "saved", "trust", block=block, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    logits = torch.load(tmp_path / "saved" / "logits.pt")
    torch.testing.assert_close(logits, model(**tiny_inputs()).logits, atol=1e-6, rtol=1e-6)


def test_a_model_is_saved_with_the_code_that_it_runs(head_file, tmp_path):
    """Not with what the file has become since, nor with another file of that name."""
    model = _compose(head_file)
    other = tmp_path / "other" / "my_head.py"
    other.parent.mkdir()
    other.write_text(HEAD.replace("terms.sum(1)", "2 * terms.sum(1)"))
    second = _compose(other)
    head_file.write_text("edited = True\n")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "my_head.py").read_text() == HEAD
    second.save_pretrained(other.parent)
    assert "2 * terms" in other.read_text()


def test_a_head_that_came_with_one_model_is_not_used_for_another(head_file, tmp_path):
    folder, _ = _saved(head_file)
    FUSION_HEADS.pop("my_head:Half")
    MMBalanceForAudioVisualClassification.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="fusion head 'Half' of module 'my_head' is not loaded"):
        MMBalanceForAudioVisualClassification.from_pretrained(folder)


def test_a_registered_head_of_other_code_than_the_saved_one_is_warned_of(head_file, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(fusion_files_mmbalance.logger, "warning", warnings.append)
    folder, _ = _saved(head_file)
    MMBalanceForAudioVisualClassification.from_pretrained(folder)
    assert warnings == []
    head_file.write_text(HEAD.replace("terms.sum(1)", "2 * terms.sum(1)"))
    load_fusion_head(f"{head_file}:Half")
    MMBalanceForAudioVisualClassification.from_pretrained(folder)
    assert len(warnings) == 1
    assert f"differs from {folder / 'my_head.py'}, which was saved with the model" in warnings[0]


def test_a_head_that_is_not_at_the_top_of_its_file_is_saved_by_name(tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(fusion_files_mmbalance.logger, "warning", warnings.append)

    class Inner(Registered):
        pass

    FUSION_HEADS["inner"] = Inner
    MMBalanceForAudioVisualClassification(tiny_config(fusion="inner")).save_pretrained(tmp_path)
    assert MMBalanceConfig.from_pretrained(tmp_path).fusion == "inner"
    assert len(warnings) == 1 and "its code is not saved with the model" in warnings[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("terms.sum(1), ", "terms, "),
            r"'my_head:Half': logits has shape \(3, 2, 4\), expected \(3, 4\) for 3 clips",
        ),
        (("=terms)", "=terms.sum(1))"), r"modality_contributions has shape \(3, 4\), expected \(3, 2, 4\)"),
        (("return FusionOutput(logits=terms.sum(1), ", "return dict("), "must return FusionOutput.*, not dict"),
        (("* modality_mask", "/ modality_mask"), "logits is not finite for clips with a missing modality"),
        (("nn.Parameter(torch.full", "(torch.full"), "tensor 'scale' would not be saved .*register_buffer"),
    ],
    ids=["shape", "contributions", "type", "missing", "tensor"],
)
def test_a_head_is_tried_before_it_is_trained(head_file, change, words):
    assert change[0] in HEAD
    head_file.write_text(HEAD.replace(*change))
    with pytest.raises(ValueError, match=words):
        _compose(head_file)


def test_a_buffer_that_is_not_saved_is_refused(head_file):
    kept = "        self.register_buffer('shift', torch.ones(num_labels), persistent=False)\n"
    head_file.write_text(HEAD.replace("    def forward", kept + "\n    def forward"))
    with pytest.raises(ValueError, match="tensor 'shift' would not be saved"):
        _compose(head_file)
