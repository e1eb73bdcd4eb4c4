"""The edge sampler against brute force: dense likelihoods, quadrature over weights, enumeration of graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from embergraph.guides.parts.edge_conditionals import conditional
from embergraph.guides.parts.edge_sampler import _Axis, sample_edges
from embergraph.guides.parts.sparse_edges import EdgePrior, fit_edges
from embergraph.models.parts.errors import DataError

GRID = np.linspace(-1.3, 1.3, 521)


def factor(size: int, seed: int) -> np.ndarray:
    W = np.random.default_rng(seed).normal(size=(size, size)) * 0.15
    return np.eye(size) + np.triu(W, 1) + np.triu(W, 1).T


def statistics(n: int, p: int, m: int, seed: int) -> tuple[Tensor, Tensor]:
    Z = np.random.default_rng(seed).normal(size=(m, n, p))
    Z[:, 1] -= 0.9 * Z[:, 0]
    return torch.tensor(np.einsum("mij,mkj->ik", Z, Z) / m), torch.tensor(np.einsum("mij,mik->jk", Z, Z) / m)


def only(pairs: list[tuple[int, int]], size: int, **settings: float) -> EdgePrior:
    """All pairs but these are ruled out; density and slab are known."""
    odds = torch.full((size, size), -60.0)
    for i, k in pairs:
        odds[i, k] = odds[k, i] = 1.0
    return EdgePrior(log_odds=odds, log_odds_sd=1e-4, slab_weight=1e8, **settings)


def log_likelihood(rows: np.ndarray, cols: np.ndarray, S_row: Tensor, S_col: Tensor, m: int) -> float:
    """Overall scale integrated out: m/2 log|Omega| - m n p / 2 log q."""
    omega = np.kron(rows, np.eye(len(cols))) + np.kron(np.eye(len(rows)), cols)
    if np.linalg.eigvalsh(omega)[0] <= 0:
        return -np.inf
    form = (rows * S_row.numpy()).sum() + (cols * S_col.numpy()).sum()
    return 0.5 * m * (np.linalg.slogdet(omega)[1] - len(omega) * np.log(form))


def test_profile_of_an_entry_is_the_dense_likelihood() -> None:
    rows, mu, m, S = factor(5, 0), np.linalg.eigvalsh(factor(4, 1)), 3, 0.7
    i, k = np.array([0, 3]), np.array([2, 4])
    for now in (rows, rows + 0.2 * (np.eye(5)[[0]].T * np.eye(5)[2] + np.eye(5)[[2]].T * np.eye(5)[0])):
        inverse = np.linalg.inv(now + mu[:, None, None] * np.eye(5))
        found = conditional(inverse, np.ones(4), i, k, now[i, k], np.full(2, S), m, 0.06, np.zeros(2))
        for pair in range(2):

            def dense(w: float, a: int = i[pair], b: int = k[pair]) -> float:
                changed = now.copy()  # noqa: B023
                changed[a, b] = changed[b, a] = w
                return m * (0.5 * sum(np.linalg.slogdet(changed + x * np.eye(5))[1] for x in mu) - w * S)

            got = [found.profile(np.full(2, w))[pair] for w in (-0.2, 0.3)]
            assert got[1] - got[0] == pytest.approx(dense(0.3) - dense(-0.2), abs=1e-10)
        moments = found.probability, found.mean, found.variance
        if now is rows:
            first = moments
    for a, b in zip(first, moments, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-9)  # of pair (0, 2): does not depend on its present weight


def test_conditional_moments_are_integrals() -> None:
    rows, mu = factor(5, 2), np.linalg.eigvalsh(factor(4, 3))
    inverse, i, k = np.linalg.inv(rows + mu[:, None, None] * np.eye(5)), *np.triu_indices(5, 1)
    S = np.random.default_rng(0).normal(size=10)
    found = conditional(inverse, np.ones(4), i, k, rows[i, k], S, 4, 0.06, np.full(10, -1.0))
    w = np.linspace(-2, 2, 8001)
    profile = np.stack([found.profile(np.full(10, x)) for x in w])
    slab = np.exp(profile - found.profile(np.zeros(10)) - w[:, None] ** 2 / 0.12) / np.sqrt(0.12 * np.pi)
    evidence = slab.sum(0) * (w[1] - w[0])
    mean = (slab * w[:, None]).sum(0) / slab.sum(0)
    odds = np.exp(-1.0) * evidence
    assert found.probability == pytest.approx(odds / (1 + odds), abs=2e-3)
    assert found.mean == pytest.approx(mean, abs=2e-3)
    assert found.variance == pytest.approx((slab * (w[:, None] - mean) ** 2).sum(0) / slab.sum(0), rel=0.03)


def test_inverses_follow_every_change() -> None:
    axis = _Axis(np.eye(6), EdgePrior(), 1)
    nodes = np.array([0.3, 1.0])
    inverse = np.linalg.inv(axis.precision + nodes[:, None, None] * np.eye(6))
    for i, k, value in [(0, 1, 0.4), (1, 5, -0.3), (0, 1, 0.0)]:
        axis._set(i, k, value, inverse)
    assert np.count_nonzero(axis.precision) == 8
    assert np.allclose(inverse, np.linalg.inv(axis.precision + nodes[:, None, None] * np.eye(6)), atol=1e-12)


def one_free_edge(S_row: Tensor, S_col: Tensor, m: int, prior: EdgePrior) -> tuple[float, float]:
    """Probability and mean weight of pair (0, 1) of the rows by quadrature."""
    logs = []
    for w in GRID:
        rows = np.eye(4)
        rows[0, 1] = rows[1, 0] = w
        logs.append(log_likelihood(rows, np.eye(5), S_row, S_col, m))
    empty = log_likelihood(np.eye(4), np.eye(5), S_row, S_col, m)
    s2 = prior.slab_scale**2
    slab = np.exp(np.array(logs) - empty - GRID**2 / (2 * s2)) / np.sqrt(2 * np.pi * s2)
    odds = np.exp(prior.centre(4) + 1.0) * slab.sum() * (GRID[1] - GRID[0])
    return float(odds / (1 + odds)), float((slab * GRID).sum() / slab.sum())


@pytest.mark.parametrize(("seed", "m"), [(1, 1), (0, 4)])
def test_one_free_edge_against_quadrature(seed: int, m: int) -> None:
    S_row, S_col = statistics(4, 5, m, seed)
    prior = only([(0, 1)], 4, expected_degree=0.5)
    found = sample_edges(S_row, S_col, m, prior, only([], 5), num_sweeps=1000, seed=seed).row
    probability, mean = one_free_edge(S_row, S_col, m, prior)
    assert float(found.probability[0, 1]) == pytest.approx(probability, abs=0.012)
    assert float(found.mean[0, 1]) == pytest.approx(mean, abs=0.01)
    assert float(found.probability[2, 3]) < 1e-9
    assert found.degrees[:, 0].mean() == pytest.approx(probability, abs=0.05)
    assert abs(one_free_edge(S_row, S_col, 2 * m, prior)[0] - probability) > 0.1  # another likelihood is seen


def test_two_edges_of_two_axes_against_enumeration() -> None:
    """Edges that explain each other away, on grids of weights: all four graphs."""
    m, n, p = 3, 3, 3
    S_row, S_col = statistics(n, p, m, 5)
    priors = only([(0, 1)], n, expected_degree=0.5), only([(0, 1)], p, expected_degree=0.5)
    grid, s2 = GRID[::5], priors[0].slab_scale ** 2
    values = np.append(grid, 0.0)
    normal = np.exp(-(grid**2) / (2 * s2)) / np.sqrt(2 * np.pi * s2) * (grid[1] - grid[0])
    pi = 1 / (1 + np.exp(-(priors[0].centre(3) + 1.0)))
    weight = np.append(pi * normal, 1 - pi)
    logs = np.empty((len(values), len(values)))
    for a, w in enumerate(values):
        for b, x in enumerate(values):
            rows, cols = np.eye(n), np.eye(p)
            rows[0, 1] = rows[1, 0] = w
            cols[0, 1] = cols[1, 0] = x
            logs[a, b] = log_likelihood(rows, cols, S_row, S_col, m)
    mass = np.exp(logs - logs.max()) * weight[:, None] * weight
    mass /= mass.sum()
    found = sample_edges(S_row, S_col, m, *priors, num_sweeps=1500, seed=1)
    assert float(found.row.probability[0, 1]) == pytest.approx(mass[:-1].sum(), abs=0.012)
    assert float(found.col.probability[0, 1]) == pytest.approx(mass[:, :-1].sum(), abs=0.012)
    assert float(found.row.mean[0, 1]) == pytest.approx(values @ mass.sum(1) / mass[:-1].sum(), abs=0.01)


def test_density_and_slab_are_drawn_from_their_conditionals() -> None:
    prior = EdgePrior(log_odds_sd=0.5)
    axis, rng = _Axis(np.eye(12), prior, 1), np.random.default_rng(0)
    for i in range(9):
        axis.precision[i, i + 1] = axis.precision[i + 1, i] = 0.2
    draws = []
    for _ in range(4000):
        axis.hyperparameters(rng)
        draws.append((axis.log_odds, 1 / axis.slab_variance))
    eta = np.linspace(-6, 2, 2001)
    log = 9 * eta - 66 * np.logaddexp(0, eta) - (eta - prior.centre(12)) ** 2 / (2 * 0.25)
    density = np.exp(log - log.max())
    mean = (density * eta).sum() / density.sum()
    sd = np.sqrt((density * (eta - mean) ** 2).sum() / density.sum())
    found, spread = np.mean(draws, 0), np.std(draws, 0)
    assert found[0] == pytest.approx(mean, abs=0.03)
    assert spread[0] == pytest.approx(sd, rel=0.08)
    shape, rate = prior.slab_weight + 4.5, prior.slab_weight * 0.25**2 + 9 * 0.04 / 2
    assert found[1] == pytest.approx(shape / rate, rel=0.02)


def test_same_seed_same_samples_and_agreement_with_the_fast_fit() -> None:
    rng = np.random.default_rng(0)
    rows = np.eye(12)
    for i in range(11):
        rows[i, i + 1] = rows[i + 1, i] = 0.45 * rng.choice([-1, 1])
    values, vectors = np.linalg.eigh(rows)
    Z = [vectors @ (rng.normal(size=(12, 14)) / np.sqrt(values[:, None] + 1)) for _ in range(10)]
    S_row, S_col = torch.tensor(sum(z @ z.T for z in Z) / 10), torch.tensor(sum(z.T @ z for z in Z) / 10)
    prior = EdgePrior()
    before = torch.get_rng_state()
    one, two = (sample_edges(S_row, S_col, 10, prior, prior, num_sweeps=40, seed=3) for _ in range(2))
    other = sample_edges(S_row, S_col, 10, prior, prior, num_sweeps=2, num_burn_in=0, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.row.probability, two.row.probability)
    assert not torch.equal(one.row.probability, other.row.probability)
    assert one.row.degrees.shape == (40, 12)
    assert one.row.acceptance > 0.9
    fast = fit_edges(S_row, S_col, 10, prior, prior)
    pairs = torch.triu_indices(12, 12, 1).unbind()
    assert float((one.row.probability - fast.row.probability)[pairs].abs().mean()) < 0.05
    assert float((one.row.mean - fast.row.mean)[rows_of(rows)].abs().max()) < 0.08


def rows_of(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.nonzero(np.triu(matrix, 1))


def test_bad_input_is_named() -> None:
    S_row, S_col = statistics(4, 5, 1, 0)
    with pytest.raises(DataError, match="S_row, S_col: found traces"):
        sample_edges(2 * S_row, S_col, 1, EdgePrior(), EdgePrior())
    with pytest.raises(DataError, match="propensity: found shape"):
        sample_edges(S_row, S_col, 1, EdgePrior(propensity=torch.ones(3)), EdgePrior())
