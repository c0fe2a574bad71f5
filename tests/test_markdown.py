"""Names and notes of others are shown as they are, whatever Markdown or HTML they hold: checked with a renderer."""

from __future__ import annotations

import html
import re

import pytest

from hf_mmbalance import markdown


ATTACKS = [
    '<img src="https://tracker.example/x.png">',
    "![picture](https://tracker.example/x.png)",
    "[click](javascript:alert(1)) <script>alert(1)</script>",
    "```\n# heading\n<b>bold</b>",
    "~~~\nx\n~~~ `code` ``two``",
    "a|b\n---|---\n| new | row |",
    "line\n\n# heading\n\n- list\n> quote",
    "# heading",
    "1. list",
    "- list",
    "---",
    "&lt;b&gt; &copy; \\* *em* __strong__ _em_ ~~gone~~ $x$",
    "http://phish.example www.phish.example someone@example.org @mention",
    "[ref]: https://tracker.example",
    "trailing backslash \\",
    "`",
    " `` ` ",
    "",
    "playing_piano and x-y, 3 > 2 + 1",
]


@pytest.fixture(scope="module")
def render():
    module = pytest.importorskip("markdown_it")
    return module.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render


def shown(page: str) -> str:
    """The text a reader sees."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_is_shown_as_it_is(render, attack):
    page = render(f"Before {markdown.text(attack)} after")
    assert set(re.findall(r"<(\w+)", page)) == {"p"}
    assert shown(page) == " ".join(f"Before {attack} after".split())
    assert set(re.findall(r"<(\w+)", render(markdown.text(attack)))) <= {"p"}, "also at the start of a line"
    assert "://" not in markdown.text(attack) and "<" not in markdown.text(attack)


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_stays_in_its_cell(render, attack):
    page = render(f"| a | b |\n|---|---|\n| {markdown.text(attack)} | end |\n\nafter\n")
    assert page.count("<tr>") == 2 and page.count("<td>") == 2 and page.endswith("<p>after</p>\n")
    assert set(re.findall(r"<(\w+)", page)) == {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert shown(page) == " ".join(f"a b {attack} end after".split())


@pytest.mark.parametrize("attack", ATTACKS)
def test_code_is_shown_as_it_is(render, attack):
    page = render(f"Before {markdown.code(attack)} after")
    assert set(re.findall(r"<(\w+)", page)) == {"p", "code"}
    assert shown(page) == " ".join(f"Before {attack} after".split())
    page = render(f"before\n\n{markdown.fenced(attack, 'bash')}\n\nafter\n")
    assert re.findall(r"<(\w+)", page) == ["p", "pre", "code", "p"]
    assert shown(page) == " ".join(f"before {attack} after".split())


def test_long_text_is_cut():
    assert len(markdown.text("x" * 10_000)) == markdown.LONGEST
