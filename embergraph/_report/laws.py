"""Distributions as text, with the names of the sites that their parameters come from."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution, Unit
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution

from .origins import origins, untraced

LOCATION_SCALE = ("loc", "scale")
MAX_PARENTS = 5


def law_of(law: Any, values: Mapping[str, Tensor]) -> str:
    """A distribution as text, ``Normal(0, tau)``.

    A parameter that is the value of a site is written as its name, one that is computed from sites or inputs as
    ``f(their names)``, a table of given numbers by its range.

    Parameters
    ----------
    law
        The distribution, in a run whose values remember their names.
    values
        Values of sites and inputs by name.
    """
    while isinstance(law, Independent | ExpandedDistribution):
        law = law.base_dist
    if isinstance(law, MaskedDistribution):
        return f"{law_of(law.base_dist, values)}, masked"
    if isinstance(law, Unit):
        return f"adds {shown(law.log_factor, values)} to the log density"
    if isinstance(law, Delta):
        return f"fixed at {shown(law.v, values)}"
    name = type(law).__name__
    if name == "ImproperUniform":
        return "flat (improper)"
    if isinstance(law, TransformedDistribution) and not type(law).arg_constraints:
        steps = [_called(type(step).__name__, _numbers_in(step), values) for step in law.transforms]
        return f"{law_of(law.base_dist, values)}, then {', '.join(steps)}"
    return _called(name, _parameters(law), values)


def base_of(law: Any) -> Any:
    """A distribution without what makes its axes events or adds plates."""
    while isinstance(law, Independent | ExpandedDistribution | MaskedDistribution):
        law = law.base_dist
    return law


def _called(name: str, parameters: Mapping[str, Any], values: Mapping[str, Tensor]) -> str:
    texts = {key: _part(value, values) for key, value in parameters.items()}
    plain = tuple(texts) == LOCATION_SCALE or len(texts) == 1
    inside = ", ".join(text if plain else f"{key}={text}" for key, text in texts.items())
    return f"{name}({inside})" if inside else name


def value_of(name: str, site: Mapping[str, Any], values: Mapping[str, Tensor]) -> str:
    """What a deterministic site is computed from."""
    law = base_of(site["fn"])
    return shown(law.v, {other: value for other, value in values.items() if other != name}, own=name)


def shown(value: Any, values: Mapping[str, Tensor], own: str = "") -> str:
    """A number, a name, ``f(names)`` or a range."""
    if not isinstance(value, Tensor):
        return f"{value:.4g}" if isinstance(value, int | float) else str(value)
    parents = sorted(origins(value) - {own}, key=_place(values))
    plain = untraced(value).detach()
    if len(parents) == 1 and _same(plain, values.get(parents[0])):
        return str(parents[0])
    if parents:
        more = f", {len(parents) - MAX_PARENTS} more" if len(parents) > MAX_PARENTS else ""
        return f"f({', '.join(parents[:MAX_PARENTS])}{more})"
    return _numbers(plain)


def _part(value: Any, values: Mapping[str, Tensor]) -> str:
    return law_of(value, values) if isinstance(value, Distribution) else shown(value, values)


def _parameters(law: Any) -> dict[str, Any]:
    """Parameters as they were given: of probs and logits, or the forms of a covariance, only one is held."""
    declared = list(type(law).arg_constraints or ())
    held = [name for name in declared if name in vars(law)]
    if {"probs", "logits"} <= set(held):
        held.remove("logits")
    names = held or declared
    return {name: getattr(law, name) for name in names} if names else _numbers_in(law)


def _numbers_in(thing: Any) -> dict[str, Any]:
    """Public attributes that are numbers or distributions, of a thing that declares no parameters."""
    return {name: value for name, value in vars(thing).items() if not name.startswith("_") and _is_parameter(value)}


def _is_parameter(value: Any) -> bool:
    return isinstance(value, Tensor | Distribution) or (isinstance(value, Number) and not isinstance(value, bool))


def _place(values: Mapping[str, Tensor]) -> Any:
    places = {name: place for place, name in enumerate(values)}
    return lambda name: (places.get(name, len(places)), name)


def _same(value: Tensor, parent: Tensor | None) -> bool:
    """Whether a parameter is a site's value, up to axes of 1s and repetition."""
    if parent is None or parent.dtype != value.dtype:
        return False
    value, parent = _squeezed(value), _squeezed(parent)
    if value.dim() < parent.dim():
        return False
    for axes in range(value.dim() - parent.dim() + 1):  # new axes are on the right of a plate's, or on the left
        candidate = parent.reshape(parent.shape + (1,) * axes)
        try:
            if torch.equal(value, candidate.expand(value.shape)):
                return True
        except RuntimeError:
            continue
    return False


def _squeezed(value: Tensor) -> Tensor:
    return value.reshape([size for size in value.shape if size != 1])


def _numbers(value: Tensor) -> str:
    if value.numel() == 0:
        return "nothing"
    if not value.is_floating_point():
        value = value.double()
    low, high = float(value.min()), float(value.max())
    if not (low == low and high == high):
        return "not a number"
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
