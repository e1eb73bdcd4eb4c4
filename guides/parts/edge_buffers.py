"""The posterior of the edges of both axes as buffers of a guide, so that it is saved and checkpointed."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from .edge_state import AxisEdges, EdgePrior, EdgeState
from .sparse_edges import start


class EdgeBuffers(torch.nn.Module):
    """Holds an `EdgeState`.

    Parameters
    ----------
    num_rows, num_cols
        n and p.
    """

    rounds: Tensor

    def __init__(self, num_rows: int, num_cols: int) -> None:
        super().__init__()
        empty = start(num_rows, num_cols, EdgePrior(1.0), EdgePrior(1.0))
        self.row, self.col = torch.nn.Module(), torch.nn.Module()
        for axis in ("row", "col"):
            for field in fields(AxisEdges):
                getattr(self, axis).register_buffer(field.name, getattr(getattr(empty, axis), field.name).clone())
        self.register_buffer("rounds", torch.tensor(0))

    def state(self) -> EdgeState:
        """The state, with tensors that later updates do not change."""
        row, col = (
            AxisEdges(**{field.name: getattr(axis, field.name).clone() for field in fields(AxisEdges)})
            for axis in (self.row, self.col)
        )
        return EdgeState(row, col, rounds=int(self.rounds), change=0.0, converged=False)

    def store(self, state: EdgeState) -> None:
        """Put a state in place of the one that is held."""
        for axis in ("row", "col"):
            for field in fields(AxisEdges):
                getattr(getattr(self, axis), field.name).copy_(getattr(getattr(state, axis), field.name))
        self.rounds.fill_(state.rounds)

    def hold(self, axis: str, precision: Tensor) -> None:
        """Put a known graph in place of an axis (``"cell"`` or ``"gene"``): nothing is uncertain about it."""
        edges = dict((self.row if axis == "cell" else self.col).named_buffers())
        edges["precision"].copy_(precision)
        edges["mean"].copy_(precision).fill_diagonal_(0.0)
        edges["probability"].copy_((edges["mean"] != 0).to(precision))
        edges["variance"].fill_(1e-12)
        edges["z"].zero_()
