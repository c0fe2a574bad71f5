"""What `train.py` and `mmbalance train` share: errors that users can mend are one sentence, not a traceback."""

from __future__ import annotations

import logging
import sys

from huggingface_hub.errors import StrictDataclassError

from hf_mmbalance._environment import check_torchaudio
from hf_mmbalance.hub.errors import HubError


def train(argv: list[str] | None = None) -> int:
    """Run training; returns the exit status (2 for arguments or data that make no sense)."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        check_torchaudio()
        from hf_mmbalance.training.run import main

        main(argv)
    except (ValueError, ImportError, OSError, StrictDataclassError, HubError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
