"""The evidence of an order as a function of the mixture: value, gradient and means against other computations."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from embergraph.guides.evidence import log_evidence, mean_edges
from embergraph.guides.orders import EDGE_VARIANCE, INTERCEPT_VARIANCE, OrderScore


def problem(num_genes: int = 5, num_cells: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    Z = rng.dirichlet([0.5] * 3, num_cells)
    X = rng.normal(size=(num_cells, num_genes))
    for j in range(1, num_genes):
        X[:, j] += Z[:, 0] * X[:, j - 1]
    return torch.tensor(X), torch.tensor(Z)


@pytest.mark.parametrize("noise", ["equal", "free"])
def test_value_is_the_score_of_the_order(noise: Literal["equal", "free"]) -> None:
    X, Z = problem()
    score = OrderScore(X.numpy(), Z.numpy(), noise)
    for order in (np.arange(5), np.array([4, 2, 0, 1, 3])):
        got = log_evidence(Z, X[:, torch.as_tensor(order)], noise)
        assert float(got) == pytest.approx(score(order), rel=1e-12)


@pytest.mark.parametrize("noise", ["equal", "free"])
def test_gradient_is_that_of_differences(noise: Literal["equal", "free"]) -> None:
    X, Z = problem()
    Z.requires_grad_()
    assert torch.autograd.gradcheck(lambda mixture: log_evidence(mixture, X, noise), Z)


def test_draws_are_scored_one_by_one() -> None:
    X, Z = problem()
    both = torch.stack([Z, Z.flip(-1)])
    torch.testing.assert_close(log_evidence(both, X, "free")[0], log_evidence(Z, X, "free"))
    torch.testing.assert_close(log_evidence(both, X, "free")[1], log_evidence(Z, X, "free"))  # archetypes have no names


def test_means_are_those_of_ridge_regression() -> None:
    X, Z = problem()
    archetypes, intercepts, sigma = mean_edges(Z, X, "free")
    for gene in range(5):
        F = torch.cat([Z] + [Z * X[:, [a]] for a in range(gene)], 1)
        prior = torch.tensor([1 / INTERCEPT_VARIANCE] * 3 + [1 / EDGE_VARIANCE] * 3 * gene, dtype=torch.double)
        mean = torch.linalg.solve(F.T @ F + prior.diag(), F.T @ X[:, gene])
        torch.testing.assert_close(intercepts[:, gene], mean[:3])
        torch.testing.assert_close(archetypes[:, :gene, gene], mean[3:].reshape(gene, 3).T)
        assert (archetypes[:, gene:, gene] == 0).all()
    assert sigma.shape == (5,)
    assert (mean_edges(Z, X, "equal")[2] == mean_edges(Z, X, "equal")[2][0]).all()
