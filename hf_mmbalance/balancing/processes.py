"""Sums and rows over the processes of a distributed run; a single process gets its input back."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sum every tensor over the processes, in one exchange; names and shapes must be the same everywhere."""
    if world_size() == 1 or not values:
        return values
    flat = torch.cat([value.flatten() for value in values.values()])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values.values()])
    return {name: part.view_as(value) for part, (name, value) in zip(parts, values.items(), strict=True)}


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Join the rows `(N_p, ...)` of all processes in the order of the processes; N_p may differ."""
    if world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    longest = max(int(count) for count in counts)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
