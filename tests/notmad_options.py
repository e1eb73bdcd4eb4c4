"""Every option of NOTMAD with a small example, and combinations in which each pair of options meets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import xarray as xr

import embergraph as eg
from embergraph.models.parts.acyclicity import ACYCLICITY
from embergraph.models.parts.acyclicity_factor import SCOPES
from embergraph.models.parts.encoders import ENCODERS
from embergraph.models.parts.mixing import MIXING

m = eg.models
NUM_GENES = 4


def learned_horseshoe(shape: tuple[int, ...]) -> Any:
    tau = pyro.sample("tau", dist.HalfCauchy(0.3))
    return m.Horseshoe(tau.reshape(tau.shape + (1,) * len(shape)))


def learned_laplace(shape: tuple[int, ...]) -> Any:
    scale = pyro.sample("scale_of_edges", dist.HalfNormal(0.3))
    return dist.Laplace(0.0, scale[..., None, None])


FACTORS = {f"{f} {s}": (lambda f=f, s=s: m.AcyclicityFactor(f, s)) for f in ACYCLICITY for s in SCOPES}
OPTIONS: dict[str, dict[str, Any]] = {
    "order": {
        "uniform": "uniform", "fixed": [2, 0, 3, 1], "projected": "projected", "mask": None,
        **dict.fromkeys(FACTORS),
    },
    "noise": {"equal": "equal", "free": "free"},
    "likelihood": {
        "gaussian": lambda: m.GaussianSEM(), "student": lambda: m.StudentSEM(4.0),
        "student, prior": lambda: m.StudentSEM(dist.Gamma(2.0, 0.1)), "logistic": lambda: m.LogisticSEM(),
        "binary": lambda: m.BinarySEM(),
    },
    "mixing": {name: name for name in MIXING},
    "archetypes": {
        "dense": lambda: m.DenseArchetypes(), "low_rank": lambda: m.LowRankArchetypes(2),
        "factors": lambda: m.FactorNetworks(4),
    },
    "encoder": {name: name for name in ENCODERS},
    "mixture_scale": {"none": None, "number": 0.5, "prior": lambda: dist.HalfNormal(0.5)},
    "edge_prior": {
        "default": None, "laplace": lambda: dist.Laplace(0.0, 0.3), "horseshoe": lambda: m.Horseshoe(0.1),
        "shared": lambda: m.SharedSpikeSlab(0.3, 0.8, 0.05), "learned horseshoe": lambda: learned_horseshoe,
    },
}  # fmt: skip

Choice = dict[str, str]


def allowed(choice: Choice) -> bool:
    """What the model refuses by its documentation."""
    relaxed = OPTIONS["order"][choice["order"]] is None
    scope = choice["order"].split()[-1]
    if choice["archetypes"] == "factors" and (choice["order"] == "projected" or (relaxed and scope != "union")):
        return False
    if choice["archetypes"] == "factors" and choice["likelihood"] == "binary":
        return False
    if relaxed and choice["mixing"] == "identity" and scope in ("union", "mean"):
        return False
    return not (relaxed and choice["mixture_scale"] != "none")


def options_of(choice: Choice) -> dict[str, Any]:
    """Arguments of `NOTMAD.for_data`."""
    found = {}
    for key, name in choice.items():
        value = OPTIONS[key][name]
        found[key] = value() if callable(value) else value
    order = choice["order"]
    if order == "mask":
        found["acyclicity"] = m.OrderMask()
    elif order in FACTORS:
        found["acyclicity"] = FACTORS[order]()
    return found


def pairwise(seed: int = 0) -> Iterator[Choice]:
    """Allowed combinations in which every allowed pair of options meets at least once (greedy, deterministic)."""
    rng = np.random.default_rng(seed)
    keys = list(OPTIONS)
    open_pairs = {
        frozenset({(a, x), (b, y)})
        for a, b in itertools.combinations(keys, 2)
        for x in OPTIONS[a]
        for y in OPTIONS[b]
        if possible({a: x, b: y})
    }
    while open_pairs:
        wanted = dict(min(open_pairs, key=lambda pair: sorted(pair)))
        tries = [complete(wanted, rng) for _ in range(40)]
        best = max((t for t in tries if t is not None), key=lambda t: len(pairs_of(t) & open_pairs))
        open_pairs -= pairs_of(best)
        yield best


def possible(partial: Choice) -> bool:
    """Whether some allowed combination has these options."""
    harmless = {
        "order": "uniform", "noise": "equal", "likelihood": "gaussian", "mixing": "softmax", "archetypes": "dense",
        "encoder": "gp", "mixture_scale": "none", "edge_prior": "default",
    }  # fmt: skip
    return allowed(harmless | partial)


def complete(wanted: Choice, rng: np.random.Generator) -> Choice | None:
    for _ in range(100):
        choice = {key: wanted.get(key) or str(rng.choice(list(names))) for key, names in OPTIONS.items()}
        if allowed(choice):
            return choice
    return None


def pairs_of(choice: Choice) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(pair) for pair in itertools.combinations(choice.items(), 2)}


def each_once(seed: int = 0) -> Iterator[Choice]:
    """Allowed combinations in which every option occurs at least once."""
    rng = np.random.default_rng(seed)
    missing = {(key, name) for key, names in OPTIONS.items() for name in names}
    while missing:
        wanted = dict([min(missing)])
        tries = [complete(wanted, rng) for _ in range(40)]
        best = max((t for t in tries if t is not None), key=lambda t: len(set(t.items()) & missing))
        missing -= set(best.items())
        yield best


def cells(likelihood: str, num_cells: int = 40) -> xr.Dataset:
    """Centred expression, or on/off genes."""
    data = eg.datasets.simulated_notmad(
        seed=0, num_cells=num_cells, num_genes=NUM_GENES, num_covariates=2, num_archetypes=2
    )
    if likelihood == "binary":
        return data.assign(expression=(data["expression"] > 0).astype(float))
    return eg.standardize(data)[0]
