"""Checks of the environment with one-sentence errors: a torchaudio that fits torch, an available device."""

from __future__ import annotations

from functools import cache

from hf_mmbalance.console import UserError


_REMEDY = 'pip install "torch>=2.11,<2.15" "torchaudio==2.11.*"'


@cache
def check_torchaudio() -> None:
    """Import torchaudio once, before transformers does.

    Raises:
        ImportError: if torchaudio is missing or does not fit the installed torch; the message is one sentence that
            names both versions and the command that fixes it.
    """
    import torch

    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"torchaudio {_installed('torchaudio')} does not work with torch {torch.__version__}: install a matching"
            f" pair with `{_REMEDY}`."
        ) from (error if isinstance(error, ModuleNotFoundError) else None)


def check_device(name: str | None) -> None:
    """Check that a device exists before anything is loaded; None (the default device) always passes.

    Raises:
        UserError: if the device does not exist; the message names it and the alternatives.
    """
    if name is None:
        return
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device name; give cpu, cuda, cuda:1, ...") from None
    if device.type == "cpu":
        return
    found = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    kind = torch.accelerator.current_accelerator()
    if not found or kind is None or kind.type != device.type or (device.index or 0) >= found:
        there = f"it has {found} {kind.type} device(s)" if found and kind is not None else "no driver, or no such GPU"
        raise UserError(
            f"--device {name}: torch cannot use it on this machine ({there}); remove the option, or give --device cpu"
        )


def _installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
