"""A griffe extension for the API pages: docstrings in the form of transformers, read as Google's.

``name (`type` of shape `(B, C)`, *optional*): text`` becomes ``name: `(B, C)`: text``, since types stand in the
signature, and ``[`Name`]`` becomes `Name`.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


ARGUMENT = re.compile(r"^( *)([\w*, ]+) \((`[^`]*`(?:`[^`]*`|[^`)])*)\): *", re.M)
SHAPE = re.compile(r"(?:shape|or) `(\([^`]*)`")
REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")


class TransformersDocstrings(griffe.Extension):
    """Rewrites the docstrings of `hf_mmbalance.model`."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None or not obj.path.startswith("hf_mmbalance."):
            return
        text = REFERENCE.sub(r"`\1`", obj.docstring.value)
        if ARGUMENT.match(text):  # `auto_docstring` of transformers adds the heading
            head, *rest = re.split(r"\n\n(?=\S)", text, maxsplit=1)
            text = "\n\n".join(["Args:\n" + re.sub("^", "    ", head, flags=re.M), *rest])
        obj.docstring.value = ARGUMENT.sub(self._argument, text)

    @staticmethod
    def _argument(found: re.Match[str]) -> str:
        indent, names, kind = found.groups()
        told = " or ".join(f"`{shape}`" for shape in SHAPE.findall(kind))
        return f"{indent}{names}: {told + ': ' if told else ''}"
