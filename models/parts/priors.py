"""Priors as modules: distributions that move with ``.to()``, are saved with the model and can be swapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from .distributions import SpikeSlab
from .edge_priors import Horseshoe, StructuredPrior
from .errors import DataError, LoadError
from .kinds import described

PriorLike: TypeAlias = TorchDistributionMixin | StructuredPrior | Callable[[tuple[int, ...]], TorchDistributionMixin]

# The distributions that a settings file may name; nothing else is ever built from a file.
NAMED: dict[str, Callable[..., Any]] = {
    cls.__name__: cls
    for cls in (
        dist.Normal,
        dist.Laplace,
        dist.StudentT,
        dist.Cauchy,
        dist.HalfNormal,
        dist.HalfCauchy,
        dist.LogNormal,
        dist.Beta,
        dist.Gamma,
        dist.InverseGamma,
        dist.Exponential,
        dist.Uniform,
        SpikeSlab,
        Horseshoe,
    )
}


class Prior(nn.Module):
    """A prior whose numbers are buffers of the model.

    A distribution kept as a plain attribute ignores ``.to()`` and ``state_dict`` and keeps the dtype it was written in;
    here its parameters are registered and the distribution is rebuilt on each call.

    Parameters
    ----------
    prior
        A distribution of scalars such as ``dist.Normal(0.0, 1.0)``, or, for hierarchies, a callable that takes the
        event shape, may call ``pyro.sample``, and returns a distribution that broadcasts over that shape:
        ``lambda shape: dist.Laplace(0.0, pyro.sample("tau", dist.HalfCauchy(0.3))[..., None, None])`` for edges. A
        `StructuredPrior` such as `SharedSpikeSlab` is one distribution of all of them.

    Raises
    ------
    DataError
        If `prior` is neither, or a distribution over vectors.
    """

    def __init__(self, prior: PriorLike) -> None:
        super().__init__()
        self._build: Callable[..., Any] = type(prior)
        self._hierarchy: Callable[[tuple[int, ...]], Any] | None = None
        self._names: tuple[str, ...] = ()
        self.structured = prior if isinstance(prior, StructuredPrior) else None
        if isinstance(prior, StructuredPrior):
            return
        if isinstance(prior, TorchDistributionMixin):
            if prior.event_shape:
                raise DataError(f"prior: found events of shape {tuple(prior.event_shape)}; wanted scalars")
            self._names = _parameter_names(prior)
            for name in self._names:
                self.register_buffer(name, torch.as_tensor(getattr(prior, name)).detach().clone())
        elif callable(prior) and not isinstance(prior, type):
            self._hierarchy = prior
        else:
            raise DataError(f"prior: found {prior!r}; wanted a distribution (an instance) or a callable")

    def expand(self, shape: tuple[int, ...]) -> Any:
        """Independent copies of the prior over `shape`, or its structured form, as one event."""
        if self.structured is not None:
            return self.structured(shape)
        if self._hierarchy is not None:
            built = self._hierarchy(shape)
        else:
            built = self._build(**{name: getattr(self, name) for name in self._names})
        outer = built.batch_shape[: max(0, len(built.batch_shape) - len(shape))]  # an axis of draws, if there is one
        return built.expand(outer + shape).to_event(len(shape))

    def check(self, name: str, shape: tuple[int, ...], *, positive: bool = False) -> None:
        """Refuse a prior that cannot be expanded to `shape`, or that allows negative values where they mean nothing.

        Hierarchies are not looked at, since they may sample.

        Raises
        ------
        DataError
            Naming the prior.
        """
        if self._hierarchy is not None or self.structured is not None:
            return
        try:
            expanded = self.expand(shape)
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"{name}: found a prior that does not expand to {shape} ({error}); wanted scalars"
            ) from error
        if expanded.batch_shape:
            raise DataError(f"{name}: found a prior of shape {tuple(expanded.batch_shape + shape)}; wanted {shape}")
        support = expanded.support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        bound = getattr(support, "lower_bound", None)
        if positive and (bound is None or bool((torch.as_tensor(bound) < 0).any())):
            raise DataError(f"{name}: found a prior on {support}; wanted one on positive numbers, such as LogNormal")

    def settings(self) -> dict[str, Any] | None:
        """JSON description of the prior, None when it has no name that a file may carry."""
        if self.structured is not None:
            return described(StructuredPrior.kinds, self.structured)
        name = self._build.__name__
        if NAMED.get(name) is not self._build:
            return None
        return {"distribution": name, "parameters": {k: getattr(self, k).tolist() for k in self._names}}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Prior:
        """Rebuild from `settings`; only distributions listed in `NAMED` are accepted.

        Raises
        ------
        LoadError
            If the name is not listed.
        """
        if "kind" in settings:
            return cls(StructuredPrior.from_settings(settings))
        build = NAMED.get(str(settings.get("distribution")))
        if build is None:
            raise LoadError(f"prior: found {settings.get('distribution')!r}; wanted one of {sorted(NAMED)}")
        return cls(build(**{k: torch.tensor(v) for k, v in settings["parameters"].items()}))

    def extra_repr(self) -> str:
        """Show the distribution and its numbers."""
        if self.structured is not None:
            return ""
        numbers = ", ".join(f"{k}={getattr(self, k).tolist()}" for k in self._names)
        return f"{self._build.__name__}({numbers})"


def _parameter_names(prior: Any) -> tuple[str, ...]:
    names = tuple(prior.arg_constraints)
    if {"probs", "logits"} <= set(names):
        names = tuple(n for n in names if n != "probs")
    if not names:
        raise DataError(
            f"prior: {type(prior).__name__} declares no parameters; pass a callable that builds it, e.g. lambda: prior"
        )
    return names
