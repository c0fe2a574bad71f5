"""Fusion heads of the user's own: named `"file:ClassName"`, registered when asked, copied with a saved model."""

import importlib.util
import inspect
import os
import shutil
import sys
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from .fusion_mmbalance import FUSION_HEADS


def fusion_class(name: str) -> type:
    """The registered fusion head of that name.

    Raises:
        ValueError: if there is none; the message lists those there are, or names the file that is missing.
    """
    if name in FUSION_HEADS:
        return FUSION_HEADS[name]
    if ":" in name:
        module, class_name = name.split(":", 1)
        raise ValueError(
            f"fusion head {class_name!r} of module {module!r} is not loaded: load the model by from_pretrained with"
            f" trust_remote_code=True, or call load_fusion_head('{module}.py:{class_name}') first"
        )
    raise ValueError(
        f"fusion={name!r} is unknown: choose one of {', '.join(sorted(FUSION_HEADS))}, or name a head of your own as"
        " 'my_head.py:MyHead'"
    )


def load_fusion_head(name: str) -> str:
    """Run the file in `"path/to/my_head.py:MyHead"`, register its head and return its name in configs.

    A name without `.py:` is returned as it is.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if the file has no such class.
    """
    path, _, class_name = name.rpartition(":")
    if not path.endswith(".py"):
        return name
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"fusion head {name!r}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    head = getattr(module, class_name, None)
    if not inspect.isclass(head):
        raise ValueError(f"fusion head {name!r}: {file} has no class {class_name!r}")
    registered = f"{file.stem}:{class_name}"
    FUSION_HEADS[registered] = head
    return registered


def prepare_fusion_class(model_class: type, name_or_path: str | os.PathLike, kwargs: dict) -> None:
    """Before a model is loaded: register the fusion head of its own that its config names, from the same place.

    Code is run only if the caller trusts it: `trust_remote_code=True`, or `model_class` itself came from there.
    """
    config = kwargs.get("config")
    if not isinstance(config, PreTrainedConfig):
        hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in kwargs}
        config = model_class.config_class.from_pretrained(name_or_path, **hub)
    trusted = kwargs.pop("trust_remote_code", False) or model_class.__module__.startswith("transformers_modules")
    name = kwargs.get("fusion", config.fusion)
    if ":" not in name or name in FUSION_HEADS or not trusted:
        return
    module, class_name = name.split(":", 1)
    hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
    try:
        FUSION_HEADS[name] = get_class_from_dynamic_module(f"{module}.{class_name}", str(name_or_path), **hub)
    except (OSError, AttributeError) as error:
        raise ValueError(
            f"the model's fusion head {class_name!r} is missing: {module}.py was not found in {name_or_path}; put the"
            " file beside the model's config.json"
        ) from error


def copy_fusion_file(name: str, folder: str | os.PathLike) -> None:
    """Copy the file of a head named `"file:ClassName"` into the folder of a saved model."""
    if ":" not in name:
        return
    source = Path(inspect.getfile(FUSION_HEADS[name]))
    target = Path(folder) / f"{name.split(':', 1)[0]}.py"
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)


__all__ = ["copy_fusion_file", "fusion_class", "load_fusion_head", "prepare_fusion_class"]
