"""Run by `test_distributed.py` in two processes: steps of every method in both must be those of one process.

    torchrun --nproc-per-node 2 -m tests.balancing.two_processes

One process has the whole batches; for methods that pair the clips of a batch, two accumulated ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .steps import CLIPS, NAMES, PAIRED, attached, backward, clips, some_missing


#: Clips of `modality_dropout` are drawn by each process's random state.
COMPARED = [name for name in NAMES if name != "modality_dropout"]
STEPS = 4


def trained(name: str, missing: bool, part: slice, parts: int, distributed: bool) -> tuple[Any, list[float]]:
    """A model after some steps with momentum on a part of every batch, and its losses."""
    model = attached(name)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if distributed else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    losses = []
    for seed in range(STEPS):
        model.balancing.progress, model.balancing.epoch = seed / STEPS, seed // 2
        inputs = some_missing(clips(seed)) if missing else clips(seed)
        optimizer.zero_grad()
        losses.append(backward(model, {key: value[part] for key, value in inputs.items()}, parts, wrapped=wrapped))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, losses


def main() -> None:
    torch.set_num_threads(1)
    whole = {
        (name, missing): trained(name, missing, slice(None), 2 if name in PAIRED else 1, False)
        for name in COMPARED
        for missing in (False, True)
    }
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    half = slice(0, CLIPS // 2) if rank == 0 else slice(CLIPS // 2, CLIPS)
    for (name, missing), (expected, expected_losses) in whole.items():
        model, losses = trained(name, missing, half, 1, True)
        total = torch.tensor(losses)
        dist.all_reduce(total)
        torch.testing.assert_close(total / 2, torch.tensor(expected_losses), atol=1e-4, rtol=0, msg=name)
        for key, value in expected.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, atol=1e-5, rtol=1e-4, msg=f"{name} {key}")
        for key, value in expected.balancing.state_dict().items():
            found = model.balancing.state_dict()[key]
            torch.testing.assert_close(found, value, atol=1e-4, rtol=1e-4, msg=f"{name} state {key}")
        if rank == 0:
            print(f"{name}{' (modalities missing)' if missing else ''}: same")  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
