"""The `evaluate` module `modality_balance`; load it with `evaluate.load(<this folder>)`."""
