"""The loss on all of the data, part by part, so that memory does not grow with the number of rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .distributed import Processes
from .messengers import Supply

NUM_EVALUATIONS = 16
BATCHES_AT_A_TIME = 4  # without gradients nothing is kept for the way back


def mean_loss(
    loss: Callable[[], float],
    plate: str,
    num_rows: int,
    batch_size: int | None,
    device: torch.device,
    processes: Processes | None = None,
    seed: int = 0,
) -> float:
    """Average a loss over draws, on all of the data.

    With minibatches it is evaluated a few batches at a time, and each part counts by its share of the rows. Every part
    is evaluated as often as makes 16 evaluations in all, once if there are more than 16 parts. Parts are random: were
    they unlike each other, as consecutive rows may be, draws of what they share would add more noise than need be.

    Parameters
    ----------
    loss
        One evaluation with fresh draws; scaled by the plate to all rows.
    plate, num_rows
        The plate that rows are supplied to, and how many it has; 0 if all rows are to be taken together.
    batch_size
        Rows of a step.
    device
        Where the rows are wanted.
    processes, seed
        Those that share out the parts, and what their draws then follow from.
    """
    if not num_rows or batch_size is None:
        return sum(loss() for _ in range(NUM_EVALUATIONS)) / NUM_EVALUATIONS
    processes = processes or Processes()
    num_parts = max(processes.size, math.ceil(num_rows / (BATCHES_AT_A_TIME * batch_size)))
    draws = math.ceil(NUM_EVALUATIONS / num_parts)
    parts = torch.randperm(num_rows, device=device).tensor_split(num_parts)
    processes.reseed(seed)

    def own_share() -> tuple[float]:
        total = 0.0
        for rows in parts[processes.rank :: processes.size]:
            with Supply({plate: rows}):
                total += len(rows) / num_rows * sum(loss() for _ in range(draws)) / draws
        return (processes.size * total,)

    return processes.means_of(own_share)[0]
