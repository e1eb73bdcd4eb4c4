"""What tests of MED-MAGMA share (models)."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

import embergraph as eg
from embergraph.models import (
    MEDMAGMA,
    NormalScales,
    SparseGraph,
)

N, P, M = 6, 8, 3


DOUBLE = {"dtype": torch.double}


def proper(**options: Any) -> dict[str, Any]:
    # few weak edges, so that a draw is seldom outside of the cone
    graph = {"slab_scale": 0.1, "expected_degree": 1.0}
    made = {
        "cell_graph": SparseGraph(**graph), "gene_graph": SparseGraph(**graph),
        "cell_scales": NormalScales(), "gene_scales": NormalScales(), "overall_prior": dist.Normal(0.0, 1.5),
    }  # fmt: skip
    return {**made, **options}


def normal(value: Tensor, scale: Any) -> Tensor:
    return dist.Normal(torch.zeros((), **DOUBLE), torch.as_tensor(scale, **DOUBLE)).log_prob(value).sum()


def zero_sum_normal(value: Tensor, tau: Tensor) -> Tensor:
    basis = torch.linalg.svd(torch.eye(len(value), **DOUBLE) - 1 / len(value)).U[:, : len(value) - 1]
    return normal(basis.T @ value, tau)


def dense_log_prob(D: Tensor, log_u: Tensor, log_v: Tensor, Omega: Tensor) -> Tensor:
    """Density of D from that of vec(X), with the Jacobian entry by entry."""
    X = D * (-log_u[:, None] - log_v).exp()
    law = torch.distributions.MultivariateNormal(torch.zeros(D.numel(), **DOUBLE), precision_matrix=Omega)
    return law.log_prob(X.reshape(-1)) - (log_u[:, None] + log_v).sum()


def kronecker(Psi_1: Tensor, Psi_2: Tensor, structure: str = "sum") -> Tensor:
    n, p = len(Psi_1), len(Psi_2)
    if structure == "product":
        return torch.kron(Psi_1, Psi_2)
    return torch.kron(Psi_1, torch.eye(p, **DOUBLE)) + torch.kron(torch.eye(n, **DOUBLE), Psi_2)


def traced(model: MEDMAGMA, seed: int = 0, **inputs: Any) -> Any:
    """A draw whose Omega is positive definite."""
    for attempt in range(100):
        torch.manual_seed(1000 * seed + attempt)
        try:
            with pyro.validation_enabled(False):
                return poutine.trace(model).get_trace(**inputs)
        except eg.NumericalError:
            continue
    raise AssertionError("no draw")


def values_of(trace: Any) -> dict[str, Tensor]:
    return {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and n != "replicate"}
