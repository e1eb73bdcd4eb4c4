"""Handlers through which routines supply values to a model: minibatch rows, parameters, draws."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

RESERVED = ("context", "fn")  # argument names of Pyro's own wrappers; a model with such an argument fails under SVI


class Supply(Messenger):
    """Give named sites their values; a plate's value is the rows of its minibatch.

    Models write plain ``pyro.plate`` and ``pyro.subsample``; the plate scales what is inside by n / batch size.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def is_plate(site: Mapping[str, Any]) -> bool:
    """Whether a sample site is the subsample of a plate."""
    return isinstance(site["fn"], _Subsample)


def sample_sites(trace: Any) -> dict[str, dict[str, Any]]:
    """Sample sites of a trace in order of appearance, without plates."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not is_plate(site)}


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """Whether a site was written by ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


def is_factor(site: Mapping[str, Any]) -> bool:
    """Whether a site was written by ``pyro.factor``."""
    return isinstance(site["fn"], pyro.distributions.Unit)


def latent_sites(trace: Any) -> dict[str, dict[str, Any]]:
    """Sites whose posterior is wanted: neither observed, deterministic nor factors."""
    return {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}


def observed_sites(trace: Any) -> dict[str, dict[str, Any]]:
    """Sites that were scored on data."""
    return {
        name: site
        for name, site in sample_sites(trace).items()
        if site["is_observed"] and not is_deterministic(site) and not is_factor(site)
    }


def site_not_finite(guide_trace: Any, trace: Any) -> str:
    """The first site of guide or model with a value or log probability that is not finite; empty if there is none."""
    for part, role in ((guide_trace, "guide"), (trace, "model")):
        for name, site in sample_sites(part).items():
            log_prob = site["fn"].log_prob(site["value"])
            if not bool(torch.isfinite(site["value"]).all() & torch.isfinite(log_prob).all()):
                return f"site {name!r} of the {role}"
    return ""


def plates_of(site: Mapping[str, Any]) -> dict[int, Any]:
    """Vectorised plates around a site by their dim (negative, from the right)."""
    return {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}


class Unobserve(Messenger):
    """Draw observed sites; unlike ``poutine.uncondition`` this leaves deterministic sites and factors as they are."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not is_deterministic(msg) and not is_factor(msg):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
            msg["infer"]["was_observed"] = True


class OwnParameters(Messenger):
    """Start ``pyro.param`` sites from copies of their initial values, which a fit would else change in place."""

    def _pyro_param(self, msg: Any) -> None:
        name, *rest = msg["args"]
        if rest and type(rest[0]) is Tensor:
            msg["args"] = (name, rest[0].detach().clone(), *rest[1:])


@contextmanager
def isolated(
    seed: int | None = None, store: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
) -> Iterator[Any]:
    """A parameter store and a random state of one's own; the caller's are as before afterwards.

    Parameters
    ----------
    seed
        Seed of torch's generators inside; None leaves the random state shared with the caller.
    store
        State of the store to start from, as `isolated` yielded it in an earlier call.
    dtype
        Torch's default precision inside, so that ``Normal(0.0, 1.0)`` in a model is of the precision of the data.
    """
    before = torch.get_default_dtype()
    devices = range(torch.cuda.device_count())
    fork = torch.random.fork_rng(devices, enabled=seed is not None)
    with pyro.get_param_store().scope(store) as state, fork, OwnParameters():
        try:
            torch.set_default_dtype(dtype or before)
            if seed is not None:
                torch.manual_seed(seed)
            yield state
        finally:
            torch.set_default_dtype(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Run without Pyro's own word on NaN, which does not name the site."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered")
        yield


def rng_state() -> tuple[Tensor, ...]:
    """State of torch's generators."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return tuple(states)


def set_rng_state(states: tuple[Tensor, ...]) -> None:
    """Inverse of `rng_state`, as far as this machine has the devices of the one that made the states."""
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)
