"""Methods by name and from a user's file."""

from __future__ import annotations

import pytest

from hf_mmbalance.balancing import BALANCING_METHODS, build_method, options_of, register_balancing_method


OWN = """
from hf_mmbalance.balancing import BalancingMethod

class Weighted(BalancingMethod):
    def __init__(self, factor=2.0):
        self.factor = factor

    def loss(self, batch):
        return self.factor * batch.loss

class NoMethod:
    pass
"""


def test_a_method_in_a_file(tmp_path):
    file = tmp_path / "my_method.py"
    file.write_text(OWN)
    assert build_method(f"{file}:Weighted", {"factor": 3.0}).factor == 3.0
    with pytest.raises(ValueError, match="has no subclass 'NoMethod' of BalancingMethod"):
        build_method(f"{file}:NoMethod")
    with pytest.raises(ValueError, match="has no subclass 'Absent'"):
        build_method(f"{file}:Absent")
    with pytest.raises(FileNotFoundError, match="other.py does not exist"):
        build_method(f"{tmp_path / 'other.py'}:Weighted")


def test_unknown_names_and_options_list_what_there_is():
    with pytest.raises(
        ValueError, match="balancing='omg' is unknown: choose one of agm, dgl.* or 'my_method.py:MyMethod'"
    ):
        build_method("omg")
    with pytest.raises(ValueError, match=r"'ogm' does not accept beta; its options are alpha \(0.8\), noise \(0.0\)"):
        build_method("ogm", {"beta": 1})
    with pytest.raises(ValueError, match="its options are none"):
        build_method("joint", {"beta": 1})


@pytest.mark.parametrize("name", sorted(BALANCING_METHODS))
def test_every_option_has_a_default_and_a_description(name):
    method = BALANCING_METHODS[name]
    described = method.__doc__ + "".join(base.__doc__ or "" for base in method.__mro__[1:])
    for option, default in options_of(method).items():
        assert default is not None or option == "self"
        assert f"    {option}: " in described


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="'ogm' is already registered"):
        register_balancing_method("ogm")(type("Other", (), {}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ogm", {"alpha": -1.0}),
        ("agm", {"alpha": -1.0}),
        ("mlb", {"alpha": -1.0}),
        ("inforeg", {"beta": -1.0}),
        ("ogm", {"end": 1.5}),
        ("dgl", {"strength": 2.0}),
        ("dgl", {"alpha": -4.0}),
        ("mmpareto", {"gamma": 0.0}),
        ("olm", {"learning_rate": -1.0}),
        ("qmf", {"weight": -1.0}),
        ("mcr", {"information": -1.0}),
        ("mcr", {"strategy": 2.0}),
        ("mcr", {"permutations": 0}),
        ("mcr", {"permutations": 2.5}),
        ("mcr", {"temperature": 0.0}),
        ("mcr", {"learning_rate": -1.0}),
        ("opm", {"base": 1.5}),
        ("remix", {"gamma": -1.0}),
        ("remix", {"warmup": 2.0}),
        ("reconboost", {"stage_epochs": -1}),
        ("reconboost", {"stage_epochs": 1.5}),
        ("reconboost", {"reconcile": -1.0}),
        ("reconboost", {"weight": 0.0}),
        ("opm", {"strength": -1.0}),
        ("frozen", {"pretraining": 1.0}),
    ],
)
def test_values_out_of_range(name, options):
    with pytest.raises(ValueError, match=f"{name}: {next(iter(options))}="):
        build_method(name, options)


def test_a_strength_that_is_not_a_number():
    with pytest.raises(ValueError, match="balancing_options: alpha=nan is not a number that 'ogm' can use"):
        build_method("ogm", {"alpha": float("nan")})


@pytest.mark.parametrize(
    ("name", "options"), [("ogm", {"alpha": "high"}), ("opm", {"base": None}), ("modality_dropout", {"rates": None})]
)
def test_values_of_the_wrong_kind(name, options):
    with pytest.raises(ValueError, match=f"'{name}' does not accept these values, .*{next(iter(options))}"):
        build_method(name, options)


def test_an_option_with_the_name_of_what_training_sets_is_refused(tmp_path):
    file = tmp_path / "my_method.py"
    file.write_text(OWN.replace("factor", "seed"))
    with pytest.raises(ValueError, match="Weighted: training sets 'seed' itself; give that option another name"):
        build_method(f"{file}:Weighted")
