"""Code shared by all verbs of the command line: adding a verb, printing, writing results, exit statuses and errors."""

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
    """An error that the user can fix: the command line shows only its message."""


class OutputClosed(Exception):
    """The reader of our output, e.g. `head`, has closed the pipe."""


def underscored(argv: Sequence[str]) -> list[str]:
    """Return the arguments with underscores in option names: `--top-k=3` becomes `--top_k=3`; values are unchanged."""
    return [
        re.sub(r"^--[A-Za-z][\w-]*", lambda name: "--" + name[0][2:].replace("-", "_"), word)
        for word in map(str, argv)
    ]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'known'?` if a known word is similar to `word`, else an empty string."""
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def with_flags(text: str, options: Iterable[str]) -> str:
    """Return a message with function arguments written as command-line options: `top_k=3` becomes `--top_k 3`.

    Args:
        text: The message.
        options: Names of the command's options. A bare name without `_` or `=` may be an ordinary word and stays.
    """
    names = "|".join(sorted(options, key=len, reverse=True))
    if not names:
        return text
    # Not part of a path, a longer word or an option, not quoted, and not a key of a YAML file.
    start = r"(?<![\w./'\"`-])(?<!\.yaml: )(?<!\.yml: )"
    text = re.sub(rf"^({names}) (?=needs|must|is )", r"--\1 ", text)
    text = re.sub(rf"{start}({names})=True\b", r"--\1", text)
    text = re.sub(rf"{start}({names})=(?=\S)", r"--\1 ", text)
    text = re.sub(rf"{start}({names})=", r"--\1", text)
    return re.sub(rf"{start}({names})(?![\w./='\"`:-])", lambda m: f"--{m[1]}" if "_" in m[1] else m[1], text)


class Parser(argparse.ArgumentParser):
    """An argument parser that accepts `--top-k` for `--top_k` and suggests a name for an unknown option."""

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
        """Return the parser of the verb that the arguments name, or this one."""
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
        verbs: Return value of `ArgumentParser.add_subparsers`.
        name: Name of the verb.
        text: Help text; the list of verbs shows its first line up to a colon, `--help` shows all of it.
        run: Function that is called with the parsed arguments and returns the exit status.
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
    """Add the option `--json FILE`."""
    parser.add_argument("--json", metavar="FILE", help=f"write the {what} as JSON (- for standard output)")


def positive(text: str) -> int:
    """Parse an option's value as an integer of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """Parse an option's value as a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
    return value


def fraction(text: str) -> float:
    """Parse an option's value as a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return value


def _number(text: str) -> float:
    """Parse a number; return NaN, which fails every bounds check, if the text is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def shard(text: str) -> tuple[int, int]:
    """Parse the value of `--shard I/N`: the part of machine I of N, counted from 0.

    Raises:
        argparse.ArgumentTypeError: if the value has a different form, or I is not less than N.
    """
    try:
        index, count = (int(number) for number in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, e.g. 0/4") from None
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"{text!r}: I must be at least 0 and less than N")
    return index, count


def hide_bars_in_log_files() -> None:
    """Turn off the progress bars of Hugging Face libraries if the standard error is not a terminal.

    A bar fills a log file with a line per update. Call this before the libraries are imported.
    """
    if not sys.stderr.isatty():
        for library in ("HUB", "DATASETS"):  # transformers follows the first
            os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")


def shows_text(arguments: argparse.Namespace) -> bool:
    """Return True if standard output is for people; `--json -` reserves it for JSON."""
    return getattr(arguments, "json", None) != "-"


def say(text: str, *, aside: bool = False) -> None:
    """Print a line; with `aside` (notes, progress) on standard error, so that the output can be piped."""
    _write(text + "\n", sys.stderr if aside else sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:  # caught only here: elsewhere, e.g. on a network connection, it is an ordinary error
        raise OutputClosed from None


@contextmanager
def progress(total: int, action: str, unit: str) -> Iterator[Callable[[], Any]]:
    """Show progress and the time left on standard error; the yielded function advances it by one."""
    from hf_mmbalance import progress as shown

    with shown.bar(total=total, desc=action, unit=unit, disable=total < 2, leave=False) as bar:
        yield bar.update


def write_result(place: str | None, result: Any) -> None:
    """Write a result to the place given by `--json`: a file, `-` for standard output, None for nowhere.

    Raises:
        OSError: if the file cannot be written.
    """
    if place == "-":
        _write(json_text(result), sys.stdout)
    elif place is not None:
        check_place(place)
        write_json(Path(place), result)


def check_place(place: str | Path | None) -> None:
    """Create the folder of an output file; called before long work, so that its result is not lost.

    Args:
        place: path of the file; `-` and None need no check.

    Raises:
        OSError: if the path is a folder, or its folder cannot be created.
    """
    if place is None or str(place) == "-":
        return
    if Path(place).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
    Path(place).parent.mkdir(parents=True, exist_ok=True)


def run_command(command: Callable[[], int], name: str = "", resume: str = "", options: Iterable[str] = ()) -> int:
    """Run a command; print an error that the user can fix as one line on standard error, not as a traceback.

    Args:
        command: Function that runs the command and returns the exit status.
        name: Prefix of error messages, e.g. `grid build`.
        resume: How to resume after Ctrl-C.
        options: Names of the command's options; messages show them as they are typed.

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
    """Show characters that standard output cannot encode as `\\xe9`, so that no file name can end a command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_error(error: Exception | str, name: str = "") -> None:
    """Print an error on standard error, without secrets."""
    text = message_of(error) if isinstance(error, Exception) else error
    sys.stderr.write(f"{name}{': ' if name else ''}error: {scrub(text)}\n")


def is_expected(error: Exception) -> bool:
    """Return True if the user's input caused the error; any other error is a bug and keeps its traceback."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, UserError | ValueError | OSError | ImportError) or "StrictDataclassError" in kinds


_REMEDIES = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some space: your quota is used up",
    errno.EFBIG: "the file system or a limit allows no larger file",
    errno.EROFS: "choose a writable path",
    errno.EACCES: "check the permissions, or choose a different path",
    errno.EPERM: "check the permissions, or choose a different path",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file, not a folder",
}


def message_of(error: Exception) -> str:
    """Return the error's message; for an error of the operating system, its file, cause and remedy."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        remedy = _REMEDIES.get(error.errno or 0)
        return f"{os.fsdecode(error.filename)}: {error.strerror}{f' ({remedy})' if remedy else ''}"
    return str(error).strip() or type(error).__name__


def fields(entries: Mapping[str, Any]) -> str:
    """Format names and values, one pair per line; the entries of a list are joined by commas."""
    width = max(map(len, entries))
    values = [", ".join(map(str, entry)) if isinstance(entry, list) else entry for entry in entries.values()]
    return "\n".join(f"{name:<{width}}  {value}" for name, value in zip(entries, values, strict=True))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "", left: int = 1) -> str:
    """Format rows of text as a table: the first `left` columns left-aligned, the others right-aligned."""
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    lines = []
    for line in [head, *rows]:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
