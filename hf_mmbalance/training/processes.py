"""Processes of one launch must find each other, or the run must not start."""

from __future__ import annotations

import os

import torch


def prefer_cpu_where_there_is_no_accelerator() -> None:
    """Let several launched processes join on the CPU.

    `accelerate launch` does not hand on the `use_cpu: true` of its config file; without this each process would take
    itself for the only one and train alone.
    """
    if launched_processes() > 1 and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def launched_processes() -> int:
    """Processes that the launcher started, by the environment it gives them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_joined(world_size: int) -> None:
    """Refuse to train as several runs side by side.

    Raises:
        ValueError: if fewer processes joined than were launched.
    """
    if world_size != launched_processes():
        raise ValueError(
            f"{launched_processes()} processes were launched but {world_size} joined, each would train alone: on a CPU"
            " use accelerate_configs/cpu_2proc.yaml, and add --use_cpu true on a machine with a GPU"
        )
