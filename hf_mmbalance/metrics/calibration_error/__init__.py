"""The `evaluate` module `calibration_error`; load it with `evaluate.load(<this folder>)`."""
