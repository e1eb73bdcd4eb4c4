"""The generative process of a fit as rows of a table, read off one run of the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from ..inference.copies import float_dtype, owner_of
from ..inference.inputs import auto_dim, to_inputs
from ..inference.messengers import Supply, is_deterministic, is_factor, isolated, plates_of, sample_sites
from .laws import base_of, law_of, value_of
from .origins import TraceOrigins, origins, traced, untraced

if TYPE_CHECKING:
    import xarray as xr

    from ..inference import Fit


HELD = "held at one value"


@dataclass(frozen=True)
class SiteLine:
    """One site of the model.

    Attributes
    ----------
    name
        Of the site.
    kind
        ``"latent"``, ``"enumerated"``, ``"deterministic"``, ``"observed"`` or ``"factor"``.
    plates
        Names of the plates around it, from left to right.
    dims
        Its axes with their sizes, those of the plates first.
    law
        Its distribution given the sites before it, as text.
    """

    name: str
    kind: str
    plates: tuple[str, ...]
    dims: tuple[tuple[str, int], ...]
    law: str

    @property
    def shape(self) -> str:
        """Dims with sizes, as text."""
        return ", ".join(f"{dim} {size}" for dim, size in self.dims) or "one number"

    def __str__(self) -> str:
        axes = ", ".join(dim for dim, _ in self.dims)
        sign = "=" if self.kind == "deterministic" else "~"
        return f"{self.name}{f'[{axes}]' if axes else ''} {sign} {self.law}"


def site_lines(fit: Fit, data: xr.Dataset, *, seed: int = 0) -> list[SiteLine]:
    """Sites of the model in the order in which they are drawn.

    Parents are found by running the model on numbers that remember where they come from; where a model does what such
    numbers do not survive, it is run on plain ones, and parents are not named.

    Parameters
    ----------
    fit
        The fit.
    data
        Data as the model takes them.
    seed
        Seed of what neither guide nor stored draws hold.
    """
    inputs = to_inputs(fit.schema, data, device=fit.device)
    try:
        trace = _trace(fit, inputs, seed, tracked=True)
    except Exception:  # whatever a model does that was not written for it
        trace = _trace(fit, inputs, seed, tracked=False)
    sites = sample_sites(trace)
    values = {name: untraced(site["value"]) for name, site in sites.items()}
    values |= {name: tensor for name, tensor in inputs.items() if name not in values}
    return [_line(fit, name, site, values) for name, site in sites.items()]


def plate_sizes(lines: list[SiteLine]) -> dict[str, int]:
    """Sizes of the plates."""
    return {dim: size for line in lines for dim, size in line.dims if dim in line.plates}


def guide_lines(fit: Fit, data: xr.Dataset) -> list[tuple[str, str]]:
    """What the guide has for every site of the model, as text: a family, or a point."""
    if fit.guide is None:
        return []
    inputs = to_inputs(fit.schema, data, device=fit.device)
    traces = []
    for seed in (0, 1):
        with _inside(fit, inputs, seed), poutine.block():
            try:
                traces.append(sample_sites(_recorded(fit.guide, inputs, tracked=True)))
            except Exception:  # as in `site_lines`
                traces.append(sample_sites(_recorded(fit.guide, inputs, tracked=False)))
    first, second = traces
    return [
        (name, _role(site, second[name], first))
        for name, site in first.items()
        if not site["infer"].get("is_auxiliary") and not is_deterministic(site)
    ]


def fitted_parts(fit: Fit) -> list[tuple[str, int]]:
    """Weights that the model itself holds, by part: point estimates beside the posterior."""
    module = owner_of(fit.model)
    sizes: dict[str, int] = {}
    for name, parameter in module.named_parameters() if module is not None else ():
        part = name.split(".", 1)[0]
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    return list(sizes.items())


def _trace(fit: Fit, inputs: Mapping[str, Tensor], seed: int, *, tracked: bool) -> Any:
    with _inside(fit, inputs, seed), poutine.block(), Supply(_known_values(fit, inputs)):
        return _recorded(fit.model, inputs, tracked=tracked)


def _recorded(fn: Any, inputs: Mapping[str, Tensor], *, tracked: bool) -> Any:
    tracker: AbstractContextManager[Any] = TraceOrigins() if tracked else nullcontext()
    given = {name: traced(value, frozenset({name})) for name, value in inputs.items()} if tracked else inputs
    with poutine.trace() as recorder, tracker:
        fn(**given)
    return recorder.trace


def _known_values(fit: Fit, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One posterior draw, since a prior may be flat, and a draw of it one that the model cannot be run on."""
    if fit.draws is not None:
        first = {name: value[0].to(fit.device) for name, value in fit.draws.flat().items()}
        if not fit.schema.normalised:
            return first
        alone = sample_sites(poutine.trace(fit.model).get_trace(**inputs))  # stored draws have axes for all plates
        return {name: value.reshape(alone[name]["value"].shape) for name, value in first.items()}
    sites = sample_sites(poutine.trace(fit.guide).get_trace(**inputs))
    return {name: site["value"].detach() for name, site in sites.items()}


def _inside(fit: Fit, inputs: Mapping[str, Tensor], seed: int) -> _Inside:
    return _Inside(fit, inputs, seed)


class _Inside(AbstractContextManager[None]):
    """Random state, store and precision of the fit; no gradients and no checks of values."""

    def __init__(self, fit: Fit, inputs: Mapping[str, Tensor], seed: int) -> None:
        self._parts = (
            isolated(seed, fit.store, float_dtype(inputs)), torch.no_grad(), pyro.validation_enabled(False),
        )  # fmt: skip

    def __enter__(self) -> None:
        for part in self._parts:
            part.__enter__()

    def __exit__(self, *error: Any) -> None:
        for part in reversed(self._parts):
            part.__exit__(*error)


def _line(fit: Fit, name: str, site: Mapping[str, Any], values: Mapping[str, Tensor]) -> SiteLine:
    frames = [frame for _, frame in sorted(plates_of(site).items())]
    value = values[name]
    declared = fit.schema.site_dims.get(name)
    depth = max((-dim for dim in plates_of(site)), default=0)
    event = site["fn"].event_dim
    if is_deterministic(site):
        event = len(declared) if declared is not None else max(0, value.dim() - depth)
    sizes = tuple(value.shape[value.dim() - event :]) if event else ()
    names = declared if declared is not None and len(declared) == event else [auto_dim(name, i) for i in range(event)]
    dims = tuple((frame.name, int(frame.size)) for frame in frames) + tuple(zip(names, sizes, strict=True))
    law = value_of(name, site, values) if is_deterministic(site) else law_of(site["fn"], values)
    return SiteLine(name, _kind(site), tuple(frame.name for frame in frames), dims, law)


def _kind(site: Mapping[str, Any]) -> str:
    if is_deterministic(site):
        return "deterministic"
    if is_factor(site):
        return "factor"
    if site["is_observed"]:
        return "observed"
    return "enumerated" if site["infer"].get("enumerate") == "parallel" else "latent"


def _role(site: Mapping[str, Any], again: Mapping[str, Any], sites: Mapping[str, Any]) -> str:
    """Name of a guide's law; a Delta is a point if it stays where it is, else another site has drawn it."""
    law = base_of(site["fn"])
    if not isinstance(law, Delta):
        return type(law).__name__
    if torch.equal(untraced(site["value"]), untraced(again["value"])):
        return HELD
    sources = [name for name in sorted(origins(law.v)) if name in sites and sites[name]["infer"].get("is_auxiliary")]
    families = sorted({type(base_of(sites[name]["fn"])).__name__ for name in sources})
    return f"{' and '.join(families)}, transformed" if families else "drawn by the guide itself"


def held_at_one_value(fit: Fit, roles: list[tuple[str, str]]) -> list[str]:
    """Sites that are the same in every draw: point estimates, not posteriors."""
    if fit.draws is None:
        return [name for name, role in roles if role == HELD]
    flat = fit.draws.flat()
    return [name for name, value in flat.items() if len(value) > 1 and bool((value == value[:1]).all())]
