"""Meet a torch/torchaudio pair that cannot work together with one sentence instead of a stack of import errors."""

from __future__ import annotations

from functools import cache


_REMEDY = 'pip install "torch>=2.11,<2.15" "torchaudio==2.11.*"'


@cache
def check_torchaudio() -> None:
    """Import torchaudio once, before transformers does.

    Raises:
        ImportError: if torchaudio is missing or does not fit the installed torch; the message is one sentence that
            names both versions and the command that mends it.
    """
    import torch

    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"torchaudio {_installed('torchaudio')} does not work with torch {torch.__version__}: install a pair that"
            f" does with `{_REMEDY}`."
        ) from (error if isinstance(error, ModuleNotFoundError) else None)


def _installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
