"""Draws from a guide, a model or a sampler's store: many in one vectorised pass, or one by one where that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer import infer_discrete
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.ops.contract import contract_to_tensor
from torch import Tensor

from ..models.parts.entries import are_independent, entry_log_prob
from ..models.parts.errors import SchemaError
from .density import DRAWS, max_plate_nesting, per_draw
from .draws import Pass, Site, arrange, check_finite
from .messengers import (
    Supply,
    Unobserve,
    is_deterministic,
    is_factor,
    latent_sites,
    observed_sites,
    plates_of,
    sample_sites,
)

if TYPE_CHECKING:
    from jaxtyping import Float

CHUNK_ELEMENTS = 4_000_000
PROBE = 3


class Sampler:
    """Runs guide and model over draws in chunks.

    Draws share one pass under an outer plate. A probe compares a draw of such a pass with the same draw alone; a model
    or guide that fails it (because it indexes from the left, or multiplies matrices of fixed rank) runs draw by draw.

    Parameters
    ----------
    model, guide
        Pyro callables; `guide` is None for stored draws and for the prior.
    inputs
        Keyword arguments of both.
    example
        One draw of the latent sites, for models whose prior is flat and has none.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        inputs: Mapping[str, Tensor],
        example: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.guide, self.inputs = model, guide, dict(inputs)
        self.example = dict(example or {})
        with torch.no_grad(), poutine.block(), Supply(self.example):
            guide_trace = poutine.trace(guide).get_trace(**self.inputs) if guide is not None else None
            replayed = poutine.replay(model, trace=guide_trace) if guide_trace is not None else model
            trace = poutine.trace(replayed).get_trace(**self.inputs)
        self.nesting = max(max_plate_nesting(t) for t in (guide_trace, trace) if t is not None)
        sites = sample_sites(trace)
        self.shapes = {n: s["value"].shape for n, s in latent_sites(trace).items()}
        self.enumerated = {n for n, s in latent_sites(trace).items() if s["infer"].get("enumerate") == "parallel"}
        self.event_dims = {n: _event_dim(s) for n, s in sites.items() if is_deterministic(s)}
        self.vectorised = True
        self.vectorised = self._probe(guide_trace)
        elements = sum(site["value"].numel() for site in sites.values())
        self.chunk = max(1, CHUNK_ELEMENTS // max(1, elements)) if self.vectorised else 1

    def chunks(self, num_draws: int) -> list[slice]:
        """Slices of draws for one pass each."""
        return [slice(i, min(i + self.chunk, num_draws)) for i in range(0, num_draws, self.chunk)]

    @torch.no_grad()
    def guide_values(self, num_draws: int) -> tuple[dict[str, Tensor], Float[Tensor, " draw"]]:
        """Draw latent sites from the guide, with log_q."""
        trace = self._trace(self.guide, {}, num_draws)
        trace.compute_log_prob()
        sites = {n: s for n, s in sample_sites(trace).items() if not s["infer"].get("is_auxiliary")}
        return {n: self._with_draws(s) for n, s in sites.items()}, self._log_density(trace, num_draws)

    @torch.no_grad()
    def model_pass(
        self, values: Mapping[str, Tensor], num_draws: int, *, predictive: bool = False, log_q: Tensor | None = None
    ) -> Pass:
        """Score draws of all latent sites; enumerated ones that `values` lacks are drawn given data and the rest."""
        values = self.completed(values, num_draws)
        trace = self._trace(self.model, values, num_draws)
        trace.compute_log_prob()
        latent = {n: s for n, s in sample_sites(trace).items() if not s["is_observed"] or is_deterministic(s)}
        found = self._arranged(latent, num_draws)
        check_finite(found)
        seen = self._arranged(observed_sites(trace), num_draws)
        return Pass(
            found,
            self._likelihood(trace, num_draws),
            self._marginal_log_p(values, num_draws) if self.enumerated else self._log_density(trace, num_draws),
            log_q,
            self.generate(num_draws, values).predictive if predictive else {},
            {name: (plates, value[0]) for name, (plates, value) in seen.items()},
        )

    def completed(self, values: Mapping[str, Tensor], num_draws: int) -> Mapping[str, Tensor]:
        """Draws of the latent sites, with the enumerated ones that `values` lacks drawn given data and the rest."""
        return {**values, **self._discrete(values, num_draws)} if self.enumerated - set(values) else values

    @torch.no_grad()
    def observed(self, values: Mapping[str, Tensor]) -> tuple[dict[str, Site], dict[str, Site]]:
        """What the observed sites are scored on, and which entries of it count; without an axis of draws.

        Parameters
        ----------
        values
            One draw of the latent sites; none: the model draws them.
        """
        trace = self._trace(self.model, values, 1)
        sites = observed_sites(trace)
        masks = {n: {**s, "value": s["mask"]} for n, s in sites.items() if isinstance(s["mask"], Tensor)}
        scored, counted = self._arranged(sites, 1), {}
        for name, site in masks.items():
            plates, mask = arrange(site["value"], site, 1, self.nesting, 0)
            value = scored[name][1]
            counted[name] = (plates, mask.reshape(mask.shape + (1,) * (value.dim() - mask.dim())).expand(value.shape))
        return _without_draws(scored), _without_draws(counted)

    @torch.no_grad()
    def log_likelihood(self, values: Mapping[str, Tensor], num_draws: int) -> dict[str, Site]:
        """Pointwise log likelihood; latent sites that `values` lacks are drawn from the model, blind to the data."""
        return self._likelihood(self._trace(self.model, values, num_draws), num_draws)

    @torch.no_grad()
    def entry_log_likelihood(
        self, values: Mapping[str, Tensor], num_draws: int, *, independent: bool = False
    ) -> tuple[dict[str, Site], dict[str, Site]]:
        """`log_likelihood`, and the log density of every entry given the others of its event, with its event dims.

        Raises
        ------
        SchemaError
            If the law of an entry is not known; with `independent`, if it depends on others of its event.
        """
        trace = self._trace(self.model, values, num_draws)
        entries = {}
        for name, site in observed_sites(trace).items():
            if independent and not are_independent(site["fn"]):
                raise SchemaError(f"{name}: found {type(site['fn']).__name__}; wanted entries that are independent")
            scores = entry_log_prob(site["fn"], site["value"], name)
            entries[name] = arrange(scores, site, num_draws, self.nesting, site["fn"].event_dim)
        check_finite(entries)
        return self._likelihood(trace, num_draws), entries

    @torch.no_grad()
    def generate(
        self, num_draws: int, values: Mapping[str, Tensor] | None = None, observed: Collection[str] = ()
    ) -> Pass:
        """Draw every site that `values` lacks from the model, the observed ones too.

        Parameters
        ----------
        num_draws
            Number of draws.
        values
            Latent sites that are given; none: draws of the prior.
        observed
            Sites that count as observed although the inputs lack what they explain.
        """
        trace, shown = self._generated(num_draws, values or {}, observed)
        trace.compute_log_prob()
        latent = {n: site for n, site in sample_sites(trace).items() if n not in shown}
        found = self._arranged(latent, num_draws)
        check_finite(found)
        return Pass(found, {}, self._log_density(trace, num_draws), None, shown)

    @torch.no_grad()
    def replicate(
        self, num_draws: int, values: Mapping[str, Tensor] | None = None, observed: Collection[str] = ()
    ) -> dict[str, Site]:
        """Draws of the observed sites as from `generate`, which are not scored: that costs as much again."""
        return self._generated(num_draws, values or {}, observed)[1]

    def _generated(
        self, num_draws: int, values: Mapping[str, Tensor], observed: Collection[str]
    ) -> tuple[Any, dict[str, Site]]:
        trace = self._trace(Unobserve()(self.model), values, num_draws)
        sites = sample_sites(trace).items()
        shown = self._arranged({n: s for n, s in sites if n in observed or "was_observed" in s["infer"]}, num_draws)
        check_finite(shown)
        return trace, shown

    def _plate(self, num_draws: int) -> AbstractContextManager[Any]:
        return pyro.plate(DRAWS, num_draws, dim=-1 - self.nesting) if self.vectorised else nullcontext()

    def _trace(self, fn: Any, values: Mapping[str, Tensor], num_draws: int) -> Any:
        with poutine.block(), Supply(self._given(values)), self._plate(num_draws):
            return poutine.trace(fn).get_trace(**self.inputs)

    def _given(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.vectorised:
            return values
        return {n: v.reshape(self.shapes[n]) for n, v in values.items() if n in self.shapes}  # a single draw

    def _with_draws(self, site: Mapping[str, Any]) -> Tensor:
        """Value of a latent site with the axes (draw, plates or 1s, event)."""
        value: Tensor = site["value"].detach()
        missing = 1 + self.nesting - (value.dim() - site["fn"].event_dim)
        return value.reshape((1,) * missing + value.shape)

    def _arranged(self, sites: Mapping[str, Any], num_draws: int) -> dict[str, Site]:
        return {
            name: arrange(site["value"], site, num_draws, self.nesting, self.event_dims.get(name, site["fn"].event_dim))
            for name, site in sites.items()
            if not is_factor(site)
        }

    def _likelihood(self, trace: Any, num_draws: int) -> dict[str, Site]:
        result = {}
        for name, site in observed_sites(trace).items():
            log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])  # a mask, but no scale
            result[name] = arrange(log_prob, site, num_draws, self.nesting, 0)
        check_finite(result)
        return result

    def _log_density(self, trace: Any, num_draws: int) -> Tensor:
        sites = sample_sites(trace).values()  # densities of flat priors come from the CPU, wherever values are
        terms = [per_draw(s["log_prob"].to(s["value"].device), num_draws, self.nesting) for s in sites]
        return torch.stack(terms).sum(0)

    def _marginal_log_p(self, values: Mapping[str, Tensor], num_draws: int) -> Tensor:
        """Log joint with the enumerated sites summed out, which is what `log_q` and the loss speak of."""
        own = {name: value for name, value in values.items() if name not in self.enumerated}
        depth = self.nesting + self.vectorised
        trace = self._trace(poutine.enum(self.model, first_available_dim=-1 - depth), own, num_draws)
        with pyro.validation_enabled(False):  # whose shape check does not know sites that no draw changes
            evaluator = TraceEinsumEvaluator(trace, has_enumerable_sites=True, max_plate_nesting=depth)
            if not self.vectorised:
                return evaluator.log_prob(trace).reshape(1)
            draws = frozenset({trace.plate_to_symbol[DRAWS]})
            return contract_to_tensor(evaluator._get_log_factors(trace), evaluator._enum_dims, target_ordinal=draws)

    def _discrete(self, values: Mapping[str, Tensor], num_draws: int) -> dict[str, Tensor]:
        def given(**inputs: Tensor) -> Any:
            with Supply(self._given(values)), self._plate(num_draws):
                return self.model(**inputs)

        inferred = infer_discrete(given, first_available_dim=-2 - self.nesting, temperature=1)
        with poutine.block():
            trace = poutine.trace(inferred).get_trace(**self.inputs)
        return {name: self._with_draws(trace.nodes[name]) for name in self.enumerated if name not in values}

    @torch.no_grad()
    def _probe(self, guide_trace: Any) -> bool:
        """Whether a draw in a vectorised pass is worth what it is worth alone."""
        try:
            values = {name: value.expand(PROBE, *value.shape) for name, value in self.example.items()}
            if guide_trace is not None:
                together = self._trace(self.guide, {}, PROBE)
                if not self._agrees(self.guide, together, guide_trace):
                    return False
                values = {n: s["value"] for n, s in latent_sites(together).items()}
            together = self._trace(self.model, values, PROBE)
            # Replayed, since a flat prior has values from the guide alone.
            given = self.model if guide_trace is None else poutine.replay(self.model, trace=guide_trace)
            with poutine.block(), Supply(self.example):
                alone = poutine.trace(given).get_trace(**self.inputs)
            return self._agrees(self.model, together, alone) and self._agrees_when_summed(together)
        except Exception:  # whatever a model does that was not written for it
            return False

    def _agrees(self, fn: Any, together: Any, like: Any) -> bool:
        """Compare the last draw of a vectorised trace with that draw alone; `like` is a trace of one draw."""
        last = {
            name: site["value"][-1].reshape(like.nodes[name]["value"].shape)
            for name, site in latent_sites(together).items()
            if not _is_point(site)  # follows from the others, and not to the last bit
        }
        with poutine.block(), Supply(last):
            alone = poutine.trace(fn).get_trace(**self.inputs)
        together.compute_log_prob()
        alone.compute_log_prob()
        for name, site in sample_sites(alone).items():
            if any(frame.full_size not in (None, frame.size) for frame in plates_of(site).values()):
                continue  # rows of its own choice, others in every run
            pairs = [(per_draw(together.nodes[name]["log_prob"], PROBE, self.nesting)[-1], site["log_prob"].sum())]
            if is_deterministic(site):
                _, many = self._arranged({name: together.nodes[name]}, PROBE)[name]
                _, one = self._arranged({name: site}, 1)[name]
                pairs.append((many[-1], one[0]))
            if not all(torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in pairs):
                return False
        return True

    def _agrees_when_summed(self, together: Any) -> bool:
        if not self.enumerated:
            return True
        values = {name: site["value"] for name, site in latent_sites(together).items()}
        many = self._marginal_log_p(values, PROBE)
        self.vectorised = False
        one = self._marginal_log_p({name: value[-1] for name, value in values.items()}, 1)
        self.vectorised = True
        return bool(torch.allclose(many[-1].double(), one[0].double(), rtol=1e-3, atol=1e-3, equal_nan=True))


def _without_draws(sites: Mapping[str, Site]) -> dict[str, Site]:
    return {name: (plates, value[0]) for name, (plates, value) in sites.items()}


def _is_point(site: Mapping[str, Any]) -> bool:
    law = site["fn"]
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return isinstance(law, Delta)


def _event_dim(site: Mapping[str, Any]) -> int:
    """Event dims of a deterministic site, which without ``event_dim=`` takes its plates for events."""
    event, shape = site["fn"].event_dim, site["value"].shape
    sizes = {dim: frame.size for dim, frame in plates_of(site).items()}
    depth = max((-dim for dim in sizes), default=0)
    if event < len(shape) or any(shape[depth + dim : depth + dim + 1] != (size,) for dim, size in sizes.items()):
        return event
    return event - depth
