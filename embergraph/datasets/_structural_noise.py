"""Expression that solves structural equations along DAGs, for several kinds of noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ..models.parts.projection import topological_order

if TYPE_CHECKING:
    from jaxtyping import Float

NoiseKind = Literal["gauss", "exponential", "gumbel", "uniform", "logistic", "poisson"]

_MOST_LOG_MEAN = 10.0


def solve(
    rng: np.random.Generator,
    networks: Float[np.ndarray, "cell regulator target"],
    kind: NoiseKind,
    scale: float,
) -> Float[np.ndarray, "cell gene"]:
    """Draw one cell from each acyclic network.

    Parameters
    ----------
    rng
        Source of chance.
    networks
        Acyclic weights.
    kind
        Additive noise, as of `numpy.random.Generator` with the scale given (uniform on +-scale), in x = x W + e; or the
        law of a gene given log odds, or log mean, x W: ``"logistic"`` (Bernoulli), ``"poisson"`` (log mean cut at 10).
    scale
        Scale of additive noise.

    Returns
    -------
    Float[np.ndarray, "cell gene"]
        Expression.
    """
    shape = networks.shape[:-1]
    if kind in ("logistic", "poisson"):
        return np.stack([_along_order(rng, network, kind) for network in networks])
    noise = {
        "gauss": lambda: rng.normal(scale=scale, size=shape),
        "exponential": lambda: rng.exponential(scale, size=shape),
        "gumbel": lambda: rng.gumbel(scale=scale, size=shape),
        "uniform": lambda: rng.uniform(-scale, scale, size=shape),
    }[kind]()
    return np.linalg.solve(np.eye(shape[1]) - networks.transpose(0, 2, 1), noise[..., None])[..., 0]


def _along_order(
    rng: np.random.Generator, network: Float[np.ndarray, "regulator target"], kind: NoiseKind
) -> Float[np.ndarray, " gene"]:
    x = np.zeros(len(network))
    for gene in topological_order(torch.as_tensor(network)).tolist():
        score = float(x @ network[:, gene])
        if kind == "logistic":
            x[gene] = float(rng.random() < 1 / (1 + np.exp(-np.clip(score, -700, 700))))
        else:
            x[gene] = float(rng.poisson(np.exp(min(score, _MOST_LOG_MEAN))))
    return x
