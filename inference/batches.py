"""Minibatches: which rows a step takes, and whether a model and a guide can run on some of the rows of a plate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor

from ..models.parts.errors import SchemaError
from ..models.schema import Schema
from .messengers import is_plate, latent_sites

if TYPE_CHECKING:
    from jaxtyping import Int


class Epochs:
    """Batches of rows: a random order of the rows an epoch, cut into batches of one size.

    A row is in at most one batch of an epoch. The ``num_rows % size`` rows at the end of an order sit that epoch out,
    so that all batches weigh the same; which rows these are is random. The rows of a step follow from the seed and the
    number of the step alone, on every device: a run that goes on needs to remember neither order nor place.

    Parameters
    ----------
    num_rows, size
        Number of rows, and how many of them a step takes.
    seed
        Seed of the orders.
    device
        Where the rows are wanted.
    """

    def __init__(self, num_rows: int, size: int, seed: int, device: torch.device) -> None:
        self.num_rows, self.size, self.seed, self.device = num_rows, size, seed, device
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def rows(self, step: int) -> Int[Tensor, " batch"]:
        """Rows of a step, counted from 0."""
        epoch, batch = divmod(step, self.num_rows // self.size)
        if epoch != self._epoch:
            seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
            order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(seed))
            self._epoch, self._order = epoch, order.to(self.device)
        return self._order[batch * self.size : (batch + 1) * self.size]


def count_rows(schema: Schema, inputs: Mapping[str, Tensor]) -> int:
    """Number of rows of the inputs along the plate of a model, 0 if no input has any."""
    for name, spec in schema.inputs.items():
        if name in inputs and schema.plate in spec.dims:
            return inputs[name].shape[spec.dims.index(schema.plate)]
    return 0


def rows_to_choose_from(plate: str, size: int, guide: Callable[..., Any], guide_trace: Any, trace: Any) -> int:
    """Number of rows that minibatches are drawn from, 0 when a step takes all of them.

    Parameters
    ----------
    plate, size
        The plate and how many of its rows a step takes.
    guide, guide_trace, trace
        The guide, and traces of guide and model.

    Raises
    ------
    SchemaError
        If the model has no such plate, or the guide is a joint one over rows.
    """
    plates = {n: s["fn"].size for n, s in trace.nodes.items() if s["type"] == "sample" and is_plate(s)}
    if plate not in plates:
        raise SchemaError(f"batch_size: found plates {sorted(plates)} in the model; wanted one named {plate!r}")
    if size >= plates[plate]:
        return 0
    local = [n for n, s in latent_sites(trace).items() if any(f.name == plate for f in s["cond_indep_stack"])]
    local = [n for n in local if n in guide_trace.nodes]
    if local and isinstance(guide, AutoContinuous):
        raise SchemaError(
            f"batch_size: {type(guide).__name__} is a joint guide and cannot subsample {local[0]!r}, which "
            "has one value a row; use AutoNormal with create_plates, an amortised guide, or no minibatches"
        )
    return int(plates[plate])


def cannot_subsample(plate: str, size: int, error: Exception) -> SchemaError:
    """What to say when a step on some of the rows failed."""
    return SchemaError(
        f"batch_size: model and guide do not run on {size} rows of the plate {plate!r} ({error}); wanted "
        "pyro.subsample of the data inside the plate, and a guide whose plate can be subsampled: "
        f"AutoNormal(model, create_plates=lambda *args, **kwargs: pyro.plate({plate!r}, n, dim=-1))"
    )
