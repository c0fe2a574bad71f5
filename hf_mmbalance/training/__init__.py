"""Training with Accelerate: arguments, batches, trainer, results."""
