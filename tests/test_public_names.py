"""Every public name can be imported in both ways, before and after its submodule is, and is never a module."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import hf_mmbalance


PACKAGES = ("hf_mmbalance", "hf_mmbalance.data", "hf_mmbalance.decision", "hf_mmbalance.hub")
NAMES = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]

CHECK = """
import importlib, pkgutil, sys, types

def check(package):
    module = importlib.import_module(package)
    assert set(dir(module)) >= set(module.__all__), package
    for name in module.__all__:
        space = {}
        exec(f"from {package} import {name}", space)
        assert getattr(module, name) is space[name], (package, name)
        assert not isinstance(space[name], types.ModuleType), (package, name, "is a module")
        assert callable(space[name]) or isinstance(space[name], (str, tuple, dict)), (package, name)

packages = sys.argv[1:]
for package in packages:
    check(package)
for found in pkgutil.walk_packages(sys.modules["hf_mmbalance"].__path__, "hf_mmbalance."):
    if not found.name.startswith("hf_mmbalance.metrics") and not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for package in packages:
    check(package)
"""


def test_every_name_is_what_it_says_also_after_all_modules_were_imported() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK, *PACKAGES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_is_not_that_of_a_submodule(package: str, name: str) -> None:
    """Importing the submodule would put it in the place of the public name."""
    folder = importlib.import_module(package).__path__[0]
    finder = importlib.machinery.PathFinder.find_spec(name, [folder])
    assert finder is None, f"{package}.{name} is also the submodule {finder.origin}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hf_mmbalance' has no attribute 'nothing'"):
        hf_mmbalance.nothing  # noqa: B018
