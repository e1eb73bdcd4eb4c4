"""The score with candidate regulators against the full one, and the screening of candidates."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from embergraph.guides.orders import OrderScore, climb, sample_orders
from embergraph.guides.sparse_orders import SparseOrderScore


def problem(num_genes: int, num_cells: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    Z = rng.dirichlet([0.4] * 3, num_cells)
    X = rng.normal(size=(num_cells, num_genes))
    for j in range(1, num_genes):
        X[:, j] += (0.4 + 0.5 * Z[:, 0]) * X[:, j - 1]
    return X, Z


@pytest.mark.parametrize("noise", ["equal", "free"])
def test_with_all_candidates_it_is_the_full_score(noise: Literal["equal", "free"]) -> None:
    X, Z = problem(6)
    full = OrderScore(X, Z, noise)
    sparse = SparseOrderScore(X, Z, noise, [set(range(6)) - {gene} for gene in range(6)])
    rng = np.random.default_rng(1)
    first = rng.permutation(6)
    for _ in range(3):
        order = rng.permutation(6)
        assert sparse(order) - sparse(first) == pytest.approx(full(order) - full(first), abs=0.05)  # single precision
    for gene in range(6):
        others = first[first != gene]
        np.testing.assert_allclose(sparse.places(others, gene), full.places(others, gene), atol=0.05)


@pytest.mark.parametrize("noise", ["equal", "free"])
def test_places_are_scored_like_whole_orders(noise: Literal["equal", "free"]) -> None:
    X, Z = problem(6)
    score = SparseOrderScore(X, Z, noise, [{1, 2}, {0, 3}, {0, 1, 4}, {2}, {5, 0}, set()])
    order = np.random.default_rng(0).permutation(6)
    for gene in range(6):
        others = order[order != gene]
        wanted = [score(np.insert(others, place, gene)) for place in range(6)]
        np.testing.assert_allclose(score.places(others, gene), wanted, rtol=1e-12)


def test_screening_finds_the_chain() -> None:
    X, Z = problem(60, num_cells=400)
    score = SparseOrderScore(X, Z, "equal")
    assert all(gene - 1 in score.candidates[gene] for gene in range(1, 60))
    assert all(gene not in some and len(some) == 24 for gene, some in enumerate(score.candidates))
    found = climb(score, np.arange(60), progress=False)
    assert score(found) >= score(np.arange(60)) > score(np.arange(60)[::-1])
    archetypes, intercepts, variances = score.means(np.arange(60))
    assert archetypes[0, 10, 11] == pytest.approx(0.9, abs=0.3)
    assert archetypes[1, 10, 11] == pytest.approx(0.4, abs=0.3)
    assert intercepts.shape == (3, 60)
    assert variances.mean() == pytest.approx(1.0, abs=0.3)


def test_orders_can_be_sampled() -> None:
    X, Z = problem(5)
    score = SparseOrderScore(X, Z, "free")
    drawn, moved = sample_orders(score, np.arange(5), num_steps=60, num_burn_in=10, progress=False)
    assert drawn.shape == (8, 5)
    assert 0 <= moved <= 1
