"""Draws of a posterior or prior, each with its log densities, in one vectorised pass of guide and model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from torch import Tensor

from ..models.parts.errors import NumericalError, SchemaError
from .density import DRAWS, max_plate_nesting, per_draw
from .messengers import Supply, is_deterministic, is_factor, observed_sites, plates_of, sample_sites

if TYPE_CHECKING:
    from jaxtyping import Float

Site = tuple[tuple[str, ...], Tensor]
"""Plate names from left to right, and values shaped (draw, *plates, *event)."""

CHUNK_ELEMENTS = 4_000_000


@dataclass
class Pass:
    """What one pass of the model over a set of draws gives.

    Attributes
    ----------
    values
        Latent and deterministic sites.
    log_likelihood
        Pointwise log likelihood of observed sites, plates kept, never scaled by a minibatch factor.
    log_p, log_q
        Log joint density and log density of the guide, one a draw. log_q is None without a guide.
    predictive
        Fresh draws of the observed sites, when asked for.
    """

    values: dict[str, Site]
    log_likelihood: dict[str, Site]
    log_p: Float[Tensor, " draw"]
    log_q: Float[Tensor, " draw"] | None
    predictive: dict[str, Site]


def arrange(value: Tensor, site: Mapping[str, Any], num_draws: int, nesting: int, event_dim: int) -> Site:
    """Bring a value into the shape (draw, own plates, event): Pyro gives it 1s for plates it does not belong to."""
    plates = {dim: frame.name for dim, frame in plates_of(site).items() if frame.name != DRAWS}
    split = value.dim() - event_dim
    sizes = {dim: frame.size for dim, frame in plates_of(site).items() if frame.name != DRAWS}
    target = tuple(sizes.get(dim, 1) for dim in range(-nesting, 0))
    batch = torch.broadcast_shapes(value.shape[:split], (num_draws, *target))
    value = value.detach().expand(batch + value.shape[split:])
    for dim in range(-1, -nesting - 1, -1):
        axis = nesting + 1 + dim
        if dim not in plates and value.shape[axis] == 1 and value.dim() - event_dim > axis:
            value = value.squeeze(axis)
        elif dim not in plates or value.shape[0] != num_draws:
            raise SchemaError(
                f"{site['name']}: found shape {tuple(batch)} left of {event_dim} event dims; wanted one axis of draws "
                "and one a plate: write pyro.deterministic(name, value, event_dim=k) inside the plates it runs over"
            )
    return tuple(plates[d] for d in range(-nesting, 0) if d in plates), value


class Sampler:
    """Runs guide and model over draws in chunks.

    Parameters
    ----------
    model, guide
        Pyro callables; `guide` is None for stored draws and for the prior.
    inputs
        Keyword arguments of both.
    """

    def __init__(
        self, model: Callable[..., Any], guide: Callable[..., Any] | None, inputs: Mapping[str, Tensor]
    ) -> None:
        self.model, self.guide, self.inputs = model, guide, dict(inputs)
        with torch.no_grad(), poutine.block():
            guide_trace = poutine.trace(guide).get_trace(**self.inputs) if guide is not None else None
            replayed = poutine.replay(model, trace=guide_trace) if guide_trace is not None else model
            trace = poutine.trace(replayed).get_trace(**self.inputs)
        traces = [t for t in (guide_trace, trace) if t is not None]
        self.nesting = max(max_plate_nesting(t) for t in traces)
        sites = sample_sites(trace).items()
        self.enumerated = {n for n, s in sites if not s["is_observed"] and s["infer"].get("enumerate") == "parallel"}
        elements = sum(site["value"].numel() for _, site in sites)
        self.chunk = max(1, CHUNK_ELEMENTS // max(1, elements))

    def chunks(self, num_draws: int) -> list[slice]:
        """Slices of draws whose pass fits into memory."""
        return [slice(i, min(i + self.chunk, num_draws)) for i in range(0, num_draws, self.chunk)]

    @torch.no_grad()
    def guide_values(self, num_draws: int) -> tuple[dict[str, Tensor], Float[Tensor, " draw"]]:
        """Draw latent sites from the guide, with log_q."""
        with poutine.block(), pyro.plate(DRAWS, num_draws, dim=-1 - self.nesting):
            trace = poutine.trace(self.guide).get_trace(**self.inputs)
        trace.compute_log_prob()
        sites = sample_sites(trace)
        log_q = sum((per_draw(s["log_prob"], num_draws, self.nesting) for s in sites.values()), torch.zeros(()))
        values = {n: s["value"] for n, s in sites.items() if not s["infer"].get("is_auxiliary")}
        return values, torch.as_tensor(log_q).expand(num_draws)

    @torch.no_grad()
    def model_pass(
        self, values: Mapping[str, Tensor], num_draws: int, *, predictive: bool = False, log_q: Tensor | None = None
    ) -> Pass:
        """Score given values of latent sites; sites that `values` lacks are drawn from the model."""
        model: Callable[..., Any] = self.model
        if self.enumerated - set(values):
            values = {**values, **self._discrete(values, num_draws)}
        trace = self._trace(model, values, num_draws)
        trace.compute_log_prob()
        sites = sample_sites(trace)
        found: dict[str, Site] = {}
        likelihood: dict[str, Site] = {}
        for name, site in sites.items():
            if not is_factor(site) and (not site["is_observed"] or is_deterministic(site)):
                event = site["fn"].event_dim
                found[name] = arrange(site["value"], site, num_draws, self.nesting, event)
        for name, site in observed_sites(trace).items():
            log_prob = site["fn"].log_prob(site["value"])
            likelihood[name] = arrange(log_prob, site, num_draws, self.nesting, 0)
        if self.enumerated:
            log_p = self._marginal_log_p(values, num_draws)
        else:
            log_p = torch.stack([per_draw(s["log_prob"], num_draws, self.nesting) for s in sites.values()]).sum(0)
        check_finite({n: v for n, (_, v) in found.items()})
        drawn = self._predictive(values, num_draws) if predictive else {}
        return Pass(found, likelihood, log_p, log_q, drawn)

    @torch.no_grad()
    def prior(self, num_draws: int) -> Pass:
        """Draw every site, the observed ones too, from the model alone."""
        trace = self._trace(poutine.uncondition(self.model), {}, num_draws)
        sites = {n: s for n, s in sample_sites(trace).items() if not is_factor(s)}
        trace.compute_log_prob()
        arranged = {n: arrange(s["value"], s, num_draws, self.nesting, s["fn"].event_dim) for n, s in sites.items()}
        predictive = {n for n, s in sites.items() if s["infer"].get("was_observed") and not is_deterministic(s)}
        log_p = torch.stack([per_draw(s["log_prob"], num_draws, self.nesting) for s in sites.values()]).sum(0)
        values = {n: v for n, v in arranged.items() if n not in predictive}
        return Pass(values, {}, log_p, None, {n: arranged[n] for n in predictive})

    def _trace(self, model: Callable[..., Any], values: Mapping[str, Tensor], num_draws: int) -> Any:
        with poutine.block(), Supply(values), pyro.plate(DRAWS, num_draws, dim=-1 - self.nesting):
            return poutine.trace(model).get_trace(**self.inputs)

    def _predictive(self, values: Mapping[str, Tensor], num_draws: int) -> dict[str, Site]:
        trace = self._trace(poutine.uncondition(self.model), values, num_draws)
        was_observed = {
            n: s
            for n, s in sample_sites(trace).items()
            if s["infer"].get("was_observed") and not is_deterministic(s) and not is_factor(s)
        }
        return {n: arrange(s["value"], s, num_draws, self.nesting, s["fn"].event_dim) for n, s in was_observed.items()}

    def _marginal_log_p(self, values: Mapping[str, Tensor], num_draws: int) -> Tensor:
        """Log joint with the enumerated sites summed out, which is what `log_q` and the loss speak of."""
        result = []
        for i in range(num_draws):
            own = {n: v[i] for n, v in values.items() if n not in self.enumerated}
            with poutine.block(), Supply(own):
                trace = poutine.trace(poutine.enum(self.model, first_available_dim=-1 - self.nesting)).get_trace(
                    **self.inputs
                )
            evaluator = TraceEinsumEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=self.nesting)
            result.append(evaluator.log_prob(trace))
        return torch.stack(result)

    def _discrete(self, values: Mapping[str, Tensor], num_draws: int) -> dict[str, Tensor]:
        def vectorised(**inputs: Tensor) -> Any:
            with Supply(values), pyro.plate(DRAWS, num_draws, dim=-1 - self.nesting):
                return self.model(**inputs)

        inferred = infer_discrete(vectorised, first_available_dim=-2 - self.nesting, temperature=1)
        with poutine.block():
            trace = poutine.trace(inferred).get_trace(**self.inputs)
        return {name: trace.nodes[name]["value"] for name in self.enumerated if name not in values}


def check_finite(values: Mapping[str, Tensor]) -> None:
    """Refuse draws that hold NaN.

    Raises
    ------
    NumericalError
        Naming the site.
    """
    for name, value in values.items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise NumericalError(f"{name}: the draws contain NaN")


def join(passes: list[Pass]) -> Pass:
    """Concatenate the chunks of a set of draws."""

    def cat(parts: list[dict[str, Site]]) -> dict[str, Site]:
        return {n: (parts[0][n][0], torch.cat([part[n][1].cpu() for part in parts])) for n in parts[0]}

    log_q = None if passes[0].log_q is None else torch.cat([p.log_q for p in passes if p.log_q is not None])
    return Pass(
        cat([p.values for p in passes]),
        cat([p.log_likelihood for p in passes]),
        torch.cat([p.log_p for p in passes]),
        log_q,
        cat([p.predictive for p in passes]),
    )


def log_mean_exp(values: Float[Tensor, "draw *rest"]) -> Float[Tensor, "*rest"]:
    """Log of the mean over draws of exponentials."""
    return values.logsumexp(0) - math.log(len(values))
