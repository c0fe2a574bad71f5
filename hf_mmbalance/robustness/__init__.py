"""Measure how a trained model holds up under corrupted audio and frames: `mmbalance robustness RUN`."""
