"""Foreign text in our Markdown: shown unchanged, never read as markup, HTML, an image or the end of a code block."""

from __future__ import annotations

import re


_BREAKS = re.compile(r"[\s\x00-\x1f\x7f\u2028\u2029]+")
# Characters with a meaning anywhere in a line (an underscore only outside a word), and those with a meaning at its
# start: headings, quotes, lists, rules.
_INLINE = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")
_START = re.compile(r"^(?=[#>+=-])|^(\d+)(?=[.)])")
LONGEST = 2000  # characters of one text


def text(value: object) -> str:
    """Return one line of plain text, which is also safe in a table cell.

    Characters with a meaning in Markdown are escaped. `<` and `&` become entities, so that no tag or entity is left,
    and so do the characters from which renderers make links or mentions.
    """
    line = _BREAKS.sub(" ", str(value)).strip()
    line = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    line = _START.sub(r"\1\\", _INLINE.sub(r"\\\1", line)).replace("&", "&amp;").replace("<", "&lt;")
    return line.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def code(value: object) -> str:
    """Return inline code with a fence longer than any run of backticks in it (CommonMark 6.1); not for table cells."""
    line = _BREAKS.sub(" ", str(value)).strip() or " "
    fence = "`" * (_longest_run(line) + 1)
    space = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{space}{line}{space}{fence}"


def fenced(value: object, language: str = "") -> str:
    """Return a code block with a fence longer than any run of backticks in it."""
    block = str(value).replace("\r", "\n")
    fence = "`" * max(_longest_run(block) + 1, 3)
    return f"{fence}{language}\n{block}\n{fence}"


def _longest_run(value: str) -> int:
    return max((len(run) for run in re.findall(r"`+", value)), default=0)
