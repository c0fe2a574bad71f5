"""`python -m hf_mmbalance VERB ...` is `mmbalance VERB ...`."""

import sys

from hf_mmbalance.cli import main


if __name__ == "__main__":
    sys.exit(main())
