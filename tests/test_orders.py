"""The collapsed score of an order against brute force, and the search and sampling over orders."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from embergraph.guides.orders import EDGE_VARIANCE, INTERCEPT_VARIANCE, OrderScore, climb, sample_orders

rng = np.random.default_rng(0)


def problem(num_genes: int, num_cells: int = 40, strength: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells on a chain 0 -> 1 -> ... whose strength differs between two archetypes."""
    own = np.random.default_rng(seed)
    Z = own.dirichlet([0.4, 0.4], num_cells)
    X = own.normal(size=(num_cells, num_genes))
    for j in range(1, num_genes):
        X[:, j] += strength * (Z[:, 0] - 0.5 * Z[:, 1]) * X[:, j - 1]
    return X - X.mean(0), Z


def evidence(X: np.ndarray, Z: np.ndarray, gene: int, predecessors: list[int]) -> float:
    """Marginal likelihood of one gene: a multivariate t, from the dense n x n covariance."""
    columns = [Z * X[:, [a]] for a in predecessors] + [Z]
    F = np.concatenate(columns, 1)
    variance = np.full(F.shape[1], EDGE_VARIANCE)
    variance[-Z.shape[1] :] = INTERCEPT_VARIANCE
    # sigma^2 ~ InverseGamma(2, 1): a t with 4 degrees of freedom and scale (1/2) (I + F V F')
    return multivariate_t(shape=0.5 * (np.eye(len(X)) + F * variance @ F.T), df=4).logpdf(X[:, gene])


def test_free_noise_score_is_the_sum_of_evidences() -> None:
    X, Z = problem(4)
    score = OrderScore(X, Z, "free")
    orders = list(itertools.permutations(range(4)))
    got = np.array([score(np.array(order)) for order in orders])
    wanted = np.array([sum(evidence(X, Z, g, list(order[:i])) for i, g in enumerate(order)) for order in orders])
    np.testing.assert_allclose(got - got[0], wanted - wanted[0], atol=1e-8)


def test_equal_noise_score_is_the_joint_evidence() -> None:
    X, Z = problem(3, num_cells=15)
    score = OrderScore(X, Z, "equal")

    def joint(order: tuple[int, ...]) -> float:
        blocks = []
        for place, _ in enumerate(order):
            F = np.concatenate([Z * X[:, [a]] for a in order[:place]] + [Z], 1)
            variance = np.full(F.shape[1], EDGE_VARIANCE)
            variance[-2:] = INTERCEPT_VARIANCE
            blocks.append(np.eye(len(X)) + F * variance @ F.T)
        rss = sum(X[:, g] @ np.linalg.solve(C, X[:, g]) for g, C in zip(order, blocks, strict=True))
        log_det = sum(np.linalg.slogdet(C)[1] for C in blocks)
        return -0.5 * log_det - (2 + X.size / 2) * np.log1p(rss / 2)

    orders = list(itertools.permutations(range(3)))
    got = np.array([score(np.array(order)) for order in orders])
    wanted = np.array([joint(order) for order in orders])
    np.testing.assert_allclose(got - got[0], wanted - wanted[0], atol=1e-8)


@pytest.mark.parametrize("noise", ["equal", "free"])
@pytest.mark.parametrize("num_genes", [2, 6])
def test_places_are_scored_like_whole_orders(noise: Literal["equal", "free"], num_genes: int) -> None:
    X, Z = problem(num_genes)
    score = OrderScore(X, Z, noise)
    order = rng.permutation(num_genes)
    for gene in range(num_genes):
        others = order[order != gene]
        wanted = [score(np.insert(others, place, gene)) for place in range(num_genes)]
        np.testing.assert_allclose(score.places(others, gene), wanted, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_climb_never_stops_below_a_better_move(seed: int) -> None:
    X, Z = problem(9, num_cells=60, seed=seed)
    score = OrderScore(X, Z, "equal")
    found = climb(score, np.random.default_rng(seed).permutation(9), progress=False)
    moves = [score(np.insert(np.delete(found, i), j, found[i])) for i in range(9) for j in range(9)]
    assert max(moves) <= score(found) + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_climb_finds_the_best_of_all_orders(seed: int) -> None:
    X, Z = problem(5, num_cells=150, seed=seed)
    score = OrderScore(X, Z, "equal")
    best = max(score(np.array(order)) for order in itertools.permutations(range(5)))
    found = climb(score, np.arange(5)[::-1], progress=False)
    assert score(found) == pytest.approx(best)


def test_sampled_orders_follow_the_exact_posterior() -> None:
    X, Z = problem(3, num_cells=40, strength=1.0, seed=3)
    score = OrderScore(X, Z, "equal")
    orders = list(itertools.permutations(range(3)))
    logs = np.array([score(np.array(order)) for order in orders])
    exact = np.exp(logs - logsumexp(logs))
    assert 0.05 < np.sort(exact)[-2] < 0.5, "the case must leave something to find out"
    drawn, accepted = sample_orders(
        score, np.arange(3), num_orders=6_000, num_steps=6_100, num_burn_in=100, seed=1, progress=False
    )
    share = np.array([(drawn == order).all(1).mean() for order in orders])
    assert 0 < accepted < 1
    np.testing.assert_allclose(share, exact, atol=0.03)
    uniform = np.full(6, 1 / 6)
    assert np.abs(share - uniform).max() > 0.1, "a sampler that ignores the score would pass"


def test_sampling_is_repeatable_and_leaves_numpy_alone() -> None:
    X, Z = problem(5)
    score = OrderScore(X, Z, "free")
    np.random.seed(0)  # noqa: NPY002  (the legacy state is what must stay)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, _ = sample_orders(score, np.arange(5), seed=4, progress=False)
    two, _ = sample_orders(score, np.arange(5), seed=4, progress=False)
    assert (one == two).all()
    assert one.shape == (8, 5)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
