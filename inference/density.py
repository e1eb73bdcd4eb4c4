"""The log joint density of a model as a function of vectors, many at once: what optimisers and samplers work on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ..models.parts.errors import SchemaError
from .messengers import Supply, is_plate, latent_sites, plates_of, sample_sites

if TYPE_CHECKING:
    from jaxtyping import Float

DRAWS = "_draws"


def max_plate_nesting(trace: Any) -> int:
    """Depth of the vectorised plates in a trace."""
    return max((-dim for site in sample_sites(trace).values() for dim in plates_of(site)), default=0)


def per_draw(log_prob: Tensor, num_draws: int, nesting: int) -> Float[Tensor, " draw"]:
    """Sum the log probabilities of one site over everything but the axis of draws."""
    if log_prob.dim() <= nesting:
        return log_prob.sum().expand(num_draws)
    return log_prob.reshape(len(log_prob), -1).sum(-1).expand(num_draws)


class LogDensity:
    """Log joint density of `model` over its latent sites, vectorised over draws.

    The model's own trace is evaluated under one outer plate, so priors and likelihood that a user changed are the ones
    that count. The model must be vectorisable: shapes indexed from the right, no branching on values.

    Parameters
    ----------
    model
        Pyro callable.
    inputs
        Its keyword arguments.
    fixed
        Sites held at given values: one value each, or with leading axes (draw, 1, ..., 1).

    Raises
    ------
    SchemaError
        If a site is discrete and not held, or `fixed` names one that the model does not have.
    """

    def __init__(
        self, model: Callable[..., Any], inputs: Mapping[str, Any], fixed: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model, self.inputs, self.fixed = model, dict(inputs), dict(fixed or {})
        with poutine.block(), torch.no_grad(), pyro.validation_enabled(False):
            trace = poutine.trace(model).get_trace(**self.inputs)
        self.nesting = max_plate_nesting(trace)
        plates = {n: s["fn"].size for n, s in trace.nodes.items() if s["type"] == "sample" and is_plate(s)}
        self.plate_sizes: dict[str, int] = plates
        latent = latent_sites(trace)
        unknown = sorted(set(self.fixed) - set(latent))
        if unknown:
            raise SchemaError(f"fixed: found {unknown[0]!r}; wanted latent sites of the model, among {sorted(latent)}")
        self.example = {name: site["value"].detach() for name, site in latent.items()}
        self.event_dims = {name: site["fn"].event_dim for name, site in latent.items()}
        self.transforms: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # unconstrained, with a 1 for each plate that is not the site's
        for name, site in latent.items():
            if name in self.fixed:
                continue
            if site["fn"].support.is_discrete:
                raise SchemaError(f"{name}: found a discrete site; wanted it in fixed=, since vectors cannot hold it")
            self.transforms[name] = biject_to(site["fn"].support)
            shape = tuple(self.transforms[name].inv(site["value"].detach()).shape)
            self.shapes[name] = (1,) * (self.nesting - len(site["fn"].batch_shape)) + shape
        self.sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        self.num_dims = sum(self.sizes.values())

    @property
    def device(self) -> torch.device:
        """Where the sites are."""
        return next((value.device for value in self.example.values()), torch.device("cpu"))

    def unpack(self, vector: Float[Tensor, "draw dim"]) -> dict[str, Tensor]:
        """Constrained values of the sites, with axes (draw, plates or 1s, event)."""
        return {name: self.transforms[name](part) for name, part in self._parts(vector).items()}

    def pack(self, values: Mapping[str, Tensor]) -> Float[Tensor, "draw dim"]:
        """Unconstrained vectors of values shaped (draw, *site shape), the inverse of `unpack` but for 1s."""
        parts = [self.transforms[name].inv(values[name]).reshape(-1, size) for name, size in self.sizes.items()]
        return torch.cat(parts, -1)

    def slices(self) -> dict[str, slice]:
        """Where each site lies in the vector."""
        ends = np.cumsum([0, *self.sizes.values()]).tolist()
        return {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(self.sizes)}

    def terms(self, vector: Float[Tensor, "draw dim"]) -> dict[str, Float[Tensor, " draw"]]:
        """Log probability of every site of the model, summed over its plates."""
        num_draws = len(vector)
        values = {**self.unpack(vector), **self.fixed}
        with poutine.trace() as recorder, Supply(values), pyro.validation_enabled(False):
            with pyro.plate(DRAWS, num_draws, dim=-1 - self.nesting):
                self.model(**self.inputs)
            trace = recorder.trace
            trace.compute_log_prob()
        return {n: per_draw(s["log_prob"], num_draws, self.nesting) for n, s in sample_sites(trace).items()}

    def __call__(self, vector: Float[Tensor, "draw dim"], jacobian: bool = True) -> Float[Tensor, " draw"]:
        """Log joint density; with `jacobian` as a density of the unconstrained vector (for samplers)."""
        total = torch.stack(list(self.terms(vector).values())).sum(0)
        if not jacobian:
            return total
        for name, part in self._parts(vector).items():
            transform = self.transforms[name]
            log_jacobian = transform.log_abs_det_jacobian(part, transform(part))
            total = total + log_jacobian.reshape(len(vector), -1).sum(-1)
        return total

    def _parts(self, vector: Tensor) -> dict[str, Tensor]:
        slices = self.slices()
        return {name: vector[:, slices[name]].reshape(len(vector), *shape) for name, shape in self.shapes.items()}
