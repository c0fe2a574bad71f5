"""Balancing methods by name, and from a user's own file."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.model.fusion_files_mmbalance import run_file


BALANCING_METHODS: dict[str, type[BalancingMethod]] = {}


def register_balancing_method(name: str) -> Callable[[type], type]:
    """Return a class decorator that makes a method available as `--balancing name`.

    Raises:
        ValueError: if a different class already has the name.
    """

    def register(cls: type) -> type:
        taken = BALANCING_METHODS.get(name)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise ValueError(f"balancing method {name!r} is already registered ({taken.__qualname__})")
        BALANCING_METHODS[name] = cls
        return cls

    return register


def build_method(name: str, options: dict[str, Any] | None = None) -> BalancingMethod:
    """Build a method from its registered name or from `"path/to/my_method.py:MyMethod"`.

    Args:
        name: Registered name, or file and class.
        options: Keyword arguments of the method.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if there is no such method (the message lists the known ones), or it does not accept the options.
    """
    method = _load(name) if ".py:" in name else BALANCING_METHODS.get(name)
    if method is None:
        known = ", ".join(sorted(BALANCING_METHODS))
        raise ValueError(f"balancing={name!r} is unknown: choose one of {known}, or 'my_method.py:MyMethod'")
    options = options or {}
    taken = options_of(method)
    unknown = sorted(set(options) - set(taken))
    if unknown:
        known = ", ".join(f"{key} ({value!r})" for key, value in taken.items()) or "none"
        raise ValueError(f"balancing_options: {name!r} does not accept {', '.join(unknown)}; its options are {known}")
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"balancing_options: {key}={value} is not a number that {name!r} can use")
    try:
        return method(**options)
    except TypeError as error:
        raise ValueError(f"balancing_options: {name!r} does not accept these values, {options}: {error}") from error


def options_of(method: type[BalancingMethod]) -> dict[str, Any]:
    """Return the options of a method and their defaults."""
    return {name: entry.default for name, entry in inspect.signature(method).parameters.items()}


def _load(name: str) -> type[BalancingMethod]:
    path, _, class_name = name.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"balancing method {name!r}: file {file} does not exist")
    module = run_file(file, f"{__name__.rpartition('.')[0]}.own.{file.stem}")
    method = getattr(module, class_name, None)
    if not (isinstance(method, type) and issubclass(method, BalancingMethod)):
        raise ValueError(f"balancing method {name!r}: {file} has no subclass {class_name!r} of BalancingMethod")
    return method
