"""User-defined fusion heads: named `"file:ClassName"`, registered on request, copied with a saved model.

A head is a single file that imports no other user files. It finds the interface in its own folder when it is loaded
with a model, and in the installed package when the file is imported directly:

```python
try:
    from .fusion_mmbalance import FusionHead, FusionOutput
except ImportError:
    from hf_mmbalance.model.fusion_mmbalance import FusionHead, FusionOutput


class MyHead(FusionHead):
    def forward(self, modality_logits, modality_mask, features=None):
        terms = modality_logits.log_softmax(-1) * modality_mask.unsqueeze(-1)
        return FusionOutput(logits=terms.sum(1), modality_contributions=terms)
```
"""

import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import cached_file, logging

from .fusion_adaptive_mmbalance import AdaptiveFusion  # noqa: F401  # registers the head
from .fusion_mmbalance import FUSION_HEADS, FusionHead, is_fusion_class
from .fusion_uncertainty_mmbalance import MLAFusion, PDFFusion  # noqa: F401  # registers the heads


logger = logging.get_logger(__name__)
HUB_KEYS = ("revision", "token", "cache_dir", "local_files_only")
OPTIONAL: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}


def fusion_class(name: str) -> type[FusionHead]:
    """Return the fusion head registered under a name.

    Raises:
        ValueError: if there is none; the message lists the registered heads, or names the missing file.
    """
    if name in FUSION_HEADS:
        return FUSION_HEADS[name]
    for registered in FUSION_HEADS.values():
        if _file_and_class(registered) == name:
            return registered
    if ":" in name:
        module, class_name = name.split(":", 1)
        raise ValueError(
            f"fusion head {class_name!r} of module {module!r} is not loaded: load the model with from_pretrained and"
            f" trust_remote_code=True, or call load_fusion_head('{module}.py:{class_name}') first"
        )
    raise ValueError(
        f"fusion={name!r} is unknown: choose one of {', '.join(sorted(FUSION_HEADS))}, or give the file and class of a"
        " user-defined head as 'my_head.py:MyHead'"
    )


def load_fusion_head(name: str) -> str:
    """Run the file in `"path/to/my_head.py:MyHead"`, register its head, and return the head's name for configs.

    A name without `.py:` is returned unchanged.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file has no such class, the class is not a [`FusionHead`], or the file's name is not an
            identifier or ends like those of the model's own files.
    """
    path, _, class_name = name.rpartition(":")
    if not path.endswith(".py"):
        return name
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"fusion head {name!r}: file {file} does not exist")
    if not file.stem.isidentifier() or file.stem.endswith("_mmbalance"):
        raise ValueError(
            f"fusion head {name!r}: rename {file.name} to letters, digits and underscores, not ending in _mmbalance"
            " (the model's own files do)"
        )
    # As a sibling of this module, so that its relative imports work and its name cannot clash with other modules.
    module_name = f"{__name__.rpartition('.')[0]}.{file.stem}"
    module, content = run_file(file, module_name), file.read_bytes()
    head: Any = getattr(module, class_name, None)
    if not isinstance(head, type):
        raise ValueError(f"fusion head {name!r}: {file} has no class {class_name!r}")
    if not is_fusion_class(head):
        raise ValueError(f"fusion head {name!r}: {class_name} must be derived from FusionHead")
    registered = f"{file.stem}:{class_name}"
    FUSION_HEADS[registered] = head
    FUSION_HEADS[registered].file_content = content
    return registered


def run_file(file: Path, module_name: str) -> Any:
    """Run a user's file as the module `module_name`, and return the module."""
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None  # a .py file has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def saved_fusion_class(model_class: Any, name_or_path: str | os.PathLike, kwargs: dict[str, Any]) -> Iterator[None]:
    """Make a model's user-defined fusion head, as saved with the model, available while the model is loaded.

    Code is run only with `trust_remote_code=True` (which `AutoModel` passes on). The file saved with the model is then
    used even if a head of that name is registered. Otherwise the registered head is used, which comes from a file that
    the user loaded, never from another model.
    """
    config = kwargs.get("config")
    hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
    if not isinstance(config, PreTrainedConfig):
        folder = {"subfolder": kwargs["subfolder"]} if "subfolder" in kwargs else {}
        config = model_class.config_class.from_pretrained(name_or_path, **hub, **folder)
    trusted = kwargs.pop("trust_remote_code", False)
    name = kwargs.get("fusion", config.fusion)
    module, _, class_name = name.partition(":")
    if not class_name or not trusted:
        if class_name and name in FUSION_HEADS:
            _warn_of_other_code(name, cached_file(name_or_path, f"{module}.py", **OPTIONAL, **hub))
        yield
        return
    try:
        head: Any = get_class_from_dynamic_module(f"{module}.{class_name}", str(name_or_path), **hub)
    except (OSError, AttributeError) as error:
        raise ValueError(
            f"the model's fusion head {class_name!r} is missing: {module}.py was not found in {name_or_path}; put the"
            " file next to the model's config.json"
        ) from error
    registered = FUSION_HEADS.get(name)
    FUSION_HEADS[name] = head
    try:
        yield
    finally:
        FUSION_HEADS.pop(name)
        if registered is not None:
            FUSION_HEADS[name] = registered


def _warn_of_other_code(name: str, saved: str | None) -> None:
    """Warn if a registered head was loaded from code that differs from the code saved with the model."""
    content = FUSION_HEADS[name].file_content
    if content is not None and saved is not None and Path(saved).read_bytes() != content:
        logger.warning(
            f"fusion head {name!r}: the file that was loaded differs from {saved}, which was saved with the model: its"
            " predictions may differ from those when it was saved; trust_remote_code=True runs the saved file"
        )


def portable_name(name: str, head: type) -> str:
    """Return a head's name for a saved config: `"file:ClassName"` if its file is saved with the model, else `name`."""
    package, _, module = head.__module__.rpartition(".")
    if ":" in name or package == __name__.rpartition(".")[0] and module.endswith("_mmbalance"):
        return name
    if head.__module__ == "__main__" or "." in head.__qualname__:
        place = "__main__" if head.__module__ == "__main__" else head.__qualname__.rpartition(".")[0]
        logger.warning(
            f"fusion head {name!r} is defined in {place}, so its code is not saved with the model: to load the model"
            " elsewhere, register the head there first, or move it to the top level of a separate file"
        )
        return name
    return _file_and_class(head)


def copy_fusion_file(name: str, head: type[FusionHead], folder: str | os.PathLike) -> None:
    """Write the file of a head named `"file:ClassName"`, as it was run, to a saved model's folder."""
    if ":" not in name:
        return
    source, target = Path(inspect.getfile(head)), Path(folder) / f"{name.split(':', 1)[0]}.py"
    if source.resolve() != target.resolve():
        target.write_bytes(head.file_content or source.read_bytes())


def _file_and_class(head: type) -> str:
    return f"{head.__module__.rpartition('.')[2]}:{head.__qualname__}"


__all__ = ["copy_fusion_file", "fusion_class", "load_fusion_head", "portable_name", "saved_fusion_class"]
