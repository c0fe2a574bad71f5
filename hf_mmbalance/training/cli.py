"""What `train.py` and `mmbalance train` share: errors that users can remedy are one sentence, not a traceback."""

from __future__ import annotations

import logging
import sys

from huggingface_hub.errors import StrictDataclassError

from hf_mmbalance._environment import check_torchaudio
from hf_mmbalance.console import UserError
from hf_mmbalance.hub.errors import HubError
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
    except (ValueError, ImportError, OSError, StrictDataclassError, HubError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
