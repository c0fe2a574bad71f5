"""Measures and the `evaluate` modules built on them; importing this loads neither torch nor evaluate."""
