"""What `train.py` and `mmbalance train` share: errors that users can remedy are one sentence, not a traceback."""

from __future__ import annotations

import logging
import sys

from hf_mmbalance import console
from hf_mmbalance._environment import check_torchaudio
from hf_mmbalance.training.interruption import Interrupted, follow_launcher


def train(argv: list[str] | None = None) -> int:
    """Run training; returns the exit status: 2 for arguments or data that cannot be used, 130 or 143 when stopped."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    follow_launcher()
    try:
        check_torchaudio()
        from hf_mmbalance.training.run import main

        main(argv)
    except Interrupted as stopped:  # the run has said how to go on
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not console.is_expected(error):
            raise
        console.print_error(str(error))
        return console.REFUSED
    return 0
