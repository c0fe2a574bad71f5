"""How a trained model holds up under corrupted sound and pictures: `mmbalance robustness RUN`."""
