"""What `train.py` and `mmbalance train` share: errors that users can remedy are one sentence, not a traceback."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path

import hf_mmbalance
from hf_mmbalance import console
from hf_mmbalance.training.help import first_screen


def train(argv: list[str] | None = None) -> int:
    """Run training; returns the exit status: 2 for arguments or data that cannot be used, 130 or 143 when stopped."""
    argv = console.underscored(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):  # answered before torch and transformers are imported
        console.say(first_screen())
        return console.DONE
    from hf_mmbalance.training.interruption import Interrupted, follow_launcher

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    follow_launcher()
    try:
        from hf_mmbalance._environment import check_torchaudio

        check_torchaudio()
        from hf_mmbalance.training.run import main

        main(argv)
    except Interrupted as stopped:  # the run has said how to go on
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not console.is_expected(error) or _in_own_code(error):
            raise
        console.print_error(console.with_flags(console.message_of(error), _option_names()))
        return console.REFUSED
    return 0


def _in_own_code(error: Exception) -> bool:
    """Whether an error passed a user's own file, a fusion head or balancing method: the traceback says where."""
    package = Path(hf_mmbalance.__file__).parent  # own files are run as modules of the package
    return any(
        frame.f_globals.get("__name__", "").startswith(f"{package.name}.")
        and frame.f_code.co_filename.endswith(".py")  # not a method that dataclasses made
        and not Path(frame.f_code.co_filename).is_relative_to(package)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _option_names() -> set[str]:
    """Names of all options of all data sets; none where even the imports fail."""
    try:
        from hf_mmbalance.training.arguments import option_names
    except ImportError:
        return set()
    return option_names()
