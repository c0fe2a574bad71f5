"""What every verb of the command line shares: how it is added, what it prints, writes and returns, how it fails."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from hf_mmbalance.json_files import json_text, write_json
from hf_mmbalance.scrubbing import scrub


# Exit statuses.
DONE = 0
PROBLEMS = 1  # the command did its work and found something wrong, e.g. `validate`
REFUSED = 2  # arguments or data that cannot be used; the message says why
INTERRUPTED = 130  # Ctrl-C, as shells report it

Command = Callable[[argparse.Namespace], int]


class UserError(RuntimeError):
    """An error that the person at the command line can remedy: its message is all that is shown."""


class OutputClosed(Exception):
    """The reader of our output, e.g. `head`, has enough."""


def underscored(argv: Sequence[str]) -> list[str]:
    """Arguments with every option's name in one style: `--top-k=3` is `--top_k=3`; values stay as they are."""
    return [
        re.sub(r"^--[A-Za-z][\w-]*", lambda name: "--" + name[0][2:].replace("-", "_"), word)
        for word in map(str, argv)
    ]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'known'?` for a word that is close to a known one, else nothing."""
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def with_flags(text: str, options: Iterable[str]) -> str:
    """A message in which arguments of a function are named as they are typed: `top_k=3` becomes `--top_k 3`.

    Args:
        text: The message.
        options: Names of the options of the command; one without `_` or `=` may be a word like any other.
    """
    names = "|".join(sorted(options, key=len, reverse=True))
    if not names:
        return text
    # Neither part of a path, a word or an option, nor quoted, nor a key of a YAML file.
    start = r"(?<![\w./'\"`-])(?<!\.yaml: )(?<!\.yml: )"
    text = re.sub(rf"^({names}) (?=needs|must|is )", r"--\1 ", text)
    text = re.sub(rf"{start}({names})=True\b", r"--\1", text)
    text = re.sub(rf"{start}({names})=(?=\S)", r"--\1 ", text)
    text = re.sub(rf"{start}({names})=", r"--\1", text)
    return re.sub(rf"{start}({names})(?![\w./='\"`:-])", lambda m: f"--{m[1]}" if "_" in m[1] else m[1], text)


class Parser(argparse.ArgumentParser):
    """An argument parser that takes `--top-k` for `--top_k`, and suggests a name for one that it does not know."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        return super().parse_known_args(underscored(sys.argv[1:] if args is None else args), namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        argv = underscored(sys.argv[1:] if args is None else args)
        found, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            parser = self.parser_of(argv)
            options = [name for action in parser._actions for name in action.option_strings]
            name = unknown[0].split("=")[0]
            hint = did_you_mean(name, options) if name.startswith("-") else ""
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found

    def parser_of(self, argv: Sequence[str]) -> argparse.ArgumentParser:
        """The parser of the verb that the arguments name, or this one."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return next((action.choices[word] for word in argv if word in action.choices), self)
        return self

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            message += did_you_mean(wrong[1], re.findall(r"[^\s',]+", wrong[2]))
        super().error(message)


def add_verb(verbs: Any, name: str, text: str, run: Command) -> argparse.ArgumentParser:
    """Add a verb to a parser's subparsers.

    Args:
        verbs: What `ArgumentParser.add_subparsers` returned.
        name: Of the verb.
        text: Help; its first line up to a colon is shown in the list of verbs, all of it by `--help`.
        run: Called with the parsed arguments; returns the exit status.
    """
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text.splitlines()[0].partition(":")[0].rstrip(".").replace("%", "%%"),
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=run)
    return parser


def add_json_option(parser: argparse.ArgumentParser, what: str = "result") -> None:
    """Add `--json FILE`."""
    parser.add_argument("--json", metavar="FILE", help=f"write the {what} as JSON (- for the standard output)")


def positive(text: str) -> int:
    """An option's value: an integer of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """An option's value: a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
    return value


def fraction(text: str) -> float:
    """An option's value: a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return value


def _number(text: str) -> float:
    """The number, or NaN, which is within no bounds."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def shard(text: str) -> tuple[int, int]:
    """The value of `--shard I/N`: the part of one of N machines, counted from 0.

    Raises:
        argparse.ArgumentTypeError: it has another form, or I is not less than N.
    """
    try:
        index, count = (int(number) for number in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, e.g. 0/4") from None
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"{text!r}: I must be at least 0 and less than N")
    return index, count


def shows_text(arguments: argparse.Namespace) -> bool:
    """Whether the standard output is for people: not where `--json -` makes it the JSON's."""
    return getattr(arguments, "json", None) != "-"


def say(text: str, *, aside: bool = False) -> None:
    """Print a line; `aside` (notes, progress) goes to the standard error, so that output can be piped."""
    _write(text + "\n", sys.stderr if aside else sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:  # that of another connection is an error like any other
        raise OutputClosed from None


@contextmanager
def progress(total: int, action: str, unit: str) -> Iterator[Callable[[], Any]]:
    """Progress with the time left, on the standard error; what it yields advances it by one."""
    from hf_mmbalance import progress as shown

    with shown.bar(total=total, desc=action, unit=unit, disable=total < 2, leave=False) as bar:
        yield bar.update


def write_result(place: str | None, result: Any) -> None:
    """Write a result where `--json` says: a file, `-` for the standard output, None for nowhere.

    Raises:
        OSError: the file cannot be written.
    """
    if place == "-":
        _write(json_text(result), sys.stdout)
    elif place is not None:
        check_place(place)
        write_json(Path(place), result)


def check_place(place: str | Path | None) -> None:
    """Make the folder of a file that will be written; before long work, so that its result is not lost.

    Args:
        place: of the file; `-` and None are nothing to check.

    Raises:
        OSError: a folder of that name, or one that cannot be made.
    """
    if place is None or str(place) == "-":
        return
    if Path(place).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
    Path(place).parent.mkdir(parents=True, exist_ok=True)


def run_command(command: Callable[[], int], name: str = "", resume: str = "", options: Iterable[str] = ()) -> int:
    """Run a command; an error that can be remedied is one line on the standard error, not a traceback.

    Args:
        command: Returns the exit status.
        name: Put before error messages, e.g. `grid build`.
        resume: How to go on after Ctrl-C.
        options: Names of its options; messages show them as they are typed.

    Returns:
        The exit status of the command, `REFUSED` or `INTERRUPTED`.
    """
    try:
        _escape_unprintable()
        return command()
    except OutputClosed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        print_error(f"interrupted{'; ' if resume else ''}{resume}", name)
        return INTERRUPTED
    except Exception as error:
        if not is_expected(error):
            raise
        print_error(with_flags(message_of(error), options), name)
        return REFUSED


def _escape_unprintable() -> None:
    """Show characters that the standard output cannot encode as `\\xe9`; a name of a file must not end a command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_error(error: Exception | str, name: str = "") -> None:
    """Print an error on the standard error, without secrets."""
    text = message_of(error) if isinstance(error, Exception) else error
    sys.stderr.write(f"{name}{': ' if name else ''}error: {scrub(text)}\n")


def is_expected(error: Exception) -> bool:
    """Whether an error is about what the user gave; others are faults of ours and keep their traceback."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, UserError | ValueError | OSError | ImportError) or "StrictDataclassError" in kinds


_REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room: your quota is used up",
    errno.EFBIG: "the file system or a limit allows no larger file",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "check the permissions, or name another place",
    errno.EPERM: "check the permissions, or name another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file, not a folder",
}


def message_of(error: Exception) -> str:
    """The error's message; for one of the operating system file, cause and remedy."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        remedy = _REMEDIES.get(error.errno or 0)
        return f"{os.fsdecode(error.filename)}: {error.strerror}{f' ({remedy})' if remedy else ''}"
    return str(error).strip() or type(error).__name__


def fields(entries: Mapping[str, Any]) -> str:
    """Names and values, one line each; a list as its entries."""
    width = max(map(len, entries))
    values = [", ".join(map(str, entry)) if isinstance(entry, list) else entry for entry in entries.values()]
    return "\n".join(f"{name:<{width}}  {value}" for name, value in zip(entries, values, strict=True))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "", left: int = 1) -> str:
    """Rows of text as a table: the first `left` columns to the left, the others to the right."""
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    lines = []
    for line in [head, *rows]:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
