"""Sparse graphs of both axes: curvature, equivariance, what is learned, prior knowledge, recovery."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from embergraph.guides.parts.edge_bound import log_posterior
from embergraph.guides.parts.edge_curvature import block_trace, curvature, quadrature
from embergraph.guides.parts.edge_learning import hub_offset, learn_coefficient, learn_slab, learn_triangles
from embergraph.guides.parts.edge_score import edge_scores
from embergraph.guides.parts.sparse_edges import EdgePrior, EdgeState, confident_precision, fit_edges, one_round, start
from embergraph.models.parts.errors import DataError

PRIOR = EdgePrior()


def signed(graph: nx.Graph, rng: np.random.Generator) -> np.ndarray:
    """Identity plus random signs over 1.1 times the root of the product of the degrees."""
    adjacency = nx.to_numpy_array(graph, nodelist=range(len(graph)))
    signs = np.triu(rng.choice([-1.0, 1.0], adjacency.shape), 1)
    degree = np.maximum(adjacency.sum(0), 1)
    return np.eye(len(degree)) + adjacency * (signs + signs.T) / np.sqrt(degree[:, None] * degree) / 1.1


def scaled(X: np.ndarray) -> np.ndarray:
    """Rows and columns of equal norm, quadratic form n p at unit precisions."""
    Z = X
    for _ in range(300):
        Z = Z / np.sqrt((Z**2).mean(1, keepdims=True))
        Z = Z / np.sqrt((Z**2).mean(0))
    return Z / np.sqrt(2)


def statistics(rows: np.ndarray, cols: np.ndarray, m: int, seed: int) -> tuple[Tensor, Tensor]:
    rng, (a, V), (b, W) = np.random.default_rng(seed), np.linalg.eigh(rows), np.linalg.eigh(cols)
    Z = [scaled(V @ (V.T @ rng.normal(size=(len(a), len(b))) @ W / np.sqrt(a[:, None] + b)) @ W.T) for _ in range(m)]
    return torch.tensor(sum(z @ z.T for z in Z) / m), torch.tensor(sum(z.T @ z for z in Z) / m)


def problem(kind: str, n: int, p: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
    rng, factors = np.random.default_rng(seed), []
    for size in (n, p):
        tree = nx.barabasi_albert_graph(size, 1, seed=int(rng.integers(2**31)))
        factors.append(signed(tree if kind == "tree" else nx.caveman_graph(size // 5, 5), rng))
    return *factors, *statistics(*factors, m, seed)


def precision_of(score: Tensor, factor: np.ndarray) -> float:
    pairs = np.tril_indices(len(factor), -1)
    return float(average_precision_score(factor[pairs] != 0, score.numpy()[pairs]))


def random_factor(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    W = 0.25 * torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    return torch.eye(size, dtype=torch.float64) + W + W.T


def test_curvature_and_block_trace_are_derivatives_of_the_likelihood() -> None:
    rows, mu = random_factor(5, 0), torch.linalg.eigvalsh(random_factor(7, 1))

    def half_log_det(w: Tensor, i: int, k: int) -> Tensor:
        change = torch.zeros(5, 5, dtype=torch.float64)
        change[i, k] = change[k, i] = 1.0
        return 0.5 * (torch.linalg.eigvalsh(rows + w * change)[:, None] + mu).log().sum()

    values, vectors = torch.linalg.eigh(rows)
    H, M = curvature(values, vectors, quadrature(mu)), block_trace(values, vectors, mu)
    for i, k in [(0, 1), (2, 4)]:
        zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(half_log_det(zero, i, k), zero)
        steps = torch.tensor([-1e-4, 0.0, 1e-4], dtype=torch.float64)
        below, here, above = (half_log_det(step, i, k) for step in steps)
        second = (above - 2 * here + below) / 1e-8
        assert float(first) == pytest.approx(float(M[i, k]), rel=1e-10)
        assert -float(second) == pytest.approx(float(H[i, k]), rel=1e-5)


def test_nodes_stand_for_all_eigenvalues() -> None:
    mu = torch.rand(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64).add(0.1)
    few = quadrature(mu)
    assert few.values[:2].tolist() == mu.sort().values[:2].tolist()
    assert float(few.weights.sum()) == 101
    assert float(few.weights @ few.values) == pytest.approx(float(mu.sum()))
    assert quadrature(mu[:9]).weights.tolist() == [1.0] * 9
    values, vectors = torch.linalg.eigh(random_factor(6, 2))
    exact = curvature(values, vectors, quadrature(mu, 101))
    errors = [float((curvature(values, vectors, quadrature(mu, k)) / exact - 1).abs().max()) for k in (3, 12, 48)]
    assert errors[0] > 0.03
    assert errors[1] < 0.005
    assert errors[2] < 0.0005


def test_large_axes_take_the_small_part_of_the_curvature_on_fewer_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, S_row, S_col = problem("tree", 40, 41, 5, 0)
    exact = fit_edges(S_row, S_col, 5, PRIOR, PRIOR)
    monkeypatch.setattr("embergraph.guides.parts.edge_curvature.MANY_ROWS", 10)
    values, vectors = torch.linalg.eigh(exact.row.precision)
    nodes = quadrature(torch.linalg.eigvalsh(exact.col.precision))
    fast = curvature(values, vectors, nodes)
    monkeypatch.undo()
    error = (fast / curvature(values, vectors, nodes) - 1).abs()
    assert 0 < float(error.max()) < 0.1
    assert float(error[exact.row.precision == 0].max()) < 0.02


def test_first_round_is_the_score_test_of_the_empty_graph() -> None:
    *_, S_row, S_col = problem("tree", 20, 25, 2, 0)
    prior = EdgePrior(expected_degree=1e-9)  # no edges expected: the standard error is that of the empty graph
    found = one_round(start(20, 25, prior, prior), S_row, S_col, 2, prior, prior).row
    error = np.sqrt(20 / 22 / (2 * 25 / 4))
    wanted = -S_row / (25 / 4) / error
    others = ~torch.eye(20, dtype=torch.bool)
    assert torch.allclose(found.z[others], wanted[others], atol=1e-6)
    assert found.z.diagonal().abs().max() == 0


def test_standard_errors_allow_for_fitted_scales() -> None:
    identity = np.eye(12)
    squares = [
        one_round(start(12, 12, PRIOR, PRIOR), *statistics(identity, identity, 1, seed), 1, PRIOR, PRIOR).row.z ** 2
        for seed in range(200)
    ]
    spread = float(torch.stack(squares).sum() / (200 * 12 * 11))
    inflation = 1 + 2 * 0.25**2 / 4  # edges expected on the other axis widen its spectrum
    assert spread * inflation == pytest.approx(1.0, abs=0.04)
    assert abs(spread * inflation * 12 / 14 - 1) > 0.1  # without the allowance


@pytest.mark.parametrize("kind", ["tree", "cliques"])
def test_equivariance(kind: str) -> None:
    *_, S_row, S_col = problem(kind, 20, 25, 5, 1)
    fit = fit_edges(S_row, S_col, 5, PRIOR, PRIOR)
    flipped = fit_edges(S_col, S_row, 5, PRIOR, PRIOR)
    assert torch.allclose(flipped.col.probability, fit.row.probability, atol=1e-10)
    assert torch.allclose(fit_edges(3 * S_row, 3 * S_col, 5, PRIOR, PRIOR).row.z, fit.row.z, atol=1e-8)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    signs = torch.ones(20, dtype=torch.float64)
    signs[::3] = -1
    changed = (signs[:, None] * signs * S_row)[order][:, order]
    other = fit_edges(changed, S_col, 5, PRIOR, PRIOR)
    assert torch.allclose(other.row.probability, fit.row.probability[order][:, order], atol=1e-8)
    assert torch.allclose(other.row.mean, (signs[:, None] * signs * fit.row.mean)[order][:, order], atol=1e-8)


def test_fit_is_deterministic_and_can_be_continued() -> None:
    *_, S_row, S_col = problem("tree", 20, 25, 5, 2)
    whole = fit_edges(S_row, S_col, 5, PRIOR, PRIOR, max_rounds=20)
    half = fit_edges(S_row, S_col, 5, PRIOR, PRIOR, max_rounds=10)
    assert not half.converged
    rest = fit_edges(S_row, S_col, 5, PRIOR, PRIOR, state=half, max_rounds=whole.rounds - 10)
    assert torch.equal(rest.row.probability, whole.row.probability)


@pytest.mark.parametrize("seed", range(3))
def test_precision_has_exact_zeros_and_stays_in_the_cone(seed: int) -> None:
    *_, S_row, S_col = problem("tree", 30, 31, 20, seed)
    fit = fit_edges(S_row, S_col, 20, PRIOR, PRIOR)
    assert fit.converged
    edges = fit.row.precision != 0
    assert not bool((edges & (fit.row.probability <= 0.5)).fill_diagonal_(False).any())
    assert 20 <= int(edges.sum() - 30) // 2 <= 40
    assert fit.row.precision.diagonal().tolist() == [1.0] * 30
    lowest = torch.linalg.eigvalsh(fit.row.precision)[0] + torch.linalg.eigvalsh(fit.col.precision)[0]
    assert float(lowest) > 0.02
    sure = confident_precision(fit.row)
    assert bool(((sure != 0) <= edges).all())
    assert float((sure != 0).sum()) < float(edges.sum()) + 1
    dense = fit_edges(S_row, S_col, 20, EdgePrior(kind="gaussian"), EdgePrior(kind="gaussian"), max_rounds=15)
    assert bool((dense.row.precision != 0).all())


def test_explaining_away_beats_the_gram_matrix_on_trees() -> None:
    gains = []
    for seed in range(8):
        rows, cols, S_row, S_col = problem("tree", 50, 51, 20, seed)
        fit = fit_edges(S_row, S_col, 20, PRIOR, PRIOR)
        default, plain = (edge_scores(fit, S_row, S_col, 20, kind) for kind in ("auto", "scaling"))
        gains.append(
            [precision_of(a, f) - precision_of(b, f) for a, b, f in zip(default, plain, (rows, cols), strict=True)]
        )
    assert np.mean(gains) > 0.01
    assert np.mean(gains) > 3 * np.std(gains) / np.size(gains) ** 0.5


def test_triangles_are_learned_from_cliques_and_not_from_trees() -> None:
    plain, off = EdgePrior(), EdgePrior(closure_sd=None)
    for kind, seed in [("tree", 0), ("tree", 1), ("cliques", 0), ("cliques", 1)]:
        rows, _, S_row, S_col = problem(kind, 40, 40, 20, seed)
        fits = [fit_edges(S_row, S_col, 20, prior, prior) for prior in (plain, off)]
        with_it, without = (precision_of(edge_scores(fit, S_row, S_col, 20)[0], rows) for fit in fits)
        assert float(fits[1].row.closure) == 0
        if kind == "tree":
            assert float(fits[0].row.closure) < 0.5
            assert with_it > without - 0.01
        else:
            assert float(fits[0].row.closure) > 2
            assert with_it > without + 0.02


def test_known_degrees_help() -> None:
    gains = []
    for seed in range(4):
        rows, cols, S_row, S_col = problem("tree", 50, 51, 1, seed)
        known = [EdgePrior(propensity=torch.tensor((factor != 0).sum(0) - 1.0)) for factor in (rows, cols)]
        fits = fit_edges(S_row, S_col, 1, *known), fit_edges(S_row, S_col, 1, PRIOR, PRIOR)
        scores = [edge_scores(fit, S_row, S_col)[0] for fit in fits]
        gains.append(precision_of(scores[0], rows) - precision_of(scores[1], rows))
    assert np.mean(gains) > 0.1


def test_known_pairs_decide() -> None:
    *_, S_row, S_col = problem("tree", 20, 25, 1, 3)
    odds = torch.zeros(20, 20)
    odds[0, 1] = odds[1, 0] = 30.0
    odds[2, 3] = odds[3, 2] = -30.0
    fit = fit_edges(S_row, S_col, 1, EdgePrior(log_odds=odds), PRIOR)
    assert float(fit.row.probability[0, 1]) > 0.999
    assert float(fit.row.probability[2, 3]) < 1e-6
    plain = fit_edges(S_row, S_col, 1, PRIOR, PRIOR)
    assert float((fit.row.probability - plain.row.probability).abs()[5:, 5:].max()) < 0.05


def test_learned_numbers_are_modes() -> None:
    generator = torch.Generator().manual_seed(0)
    upper = torch.rand(3, 9, 9, generator=generator, dtype=torch.float64).triu(1)
    probability, feature, offset = upper + upper.mT
    pairs = torch.triu_indices(9, 9, 1).unbind()
    value = learn_coefficient(torch.tensor(0.0, dtype=torch.float64), feature, offset, probability, -1.0, 0.4)
    free = value.clone().requires_grad_()
    odds = (offset + free * feature)[pairs]
    target = (probability[pairs] * odds - torch.nn.functional.softplus(odds)).sum() - (free + 1) ** 2 / (2 * 0.4**2)
    assert float(torch.autograd.grad(target, free)[0]) == pytest.approx(0, abs=1e-9)

    mean, variance = torch.full_like(offset, 0.3), torch.full_like(offset, 0.01)
    s2 = learn_slab(probability, mean, variance, PRIOR)
    log = (-s2.log()).requires_grad_()
    number, prior = probability[pairs].sum(), PRIOR.slab_weight
    target = (prior + number / 2) * log - log.exp() * (prior * PRIOR.slab_scale**2 + number * (0.09 + 0.01) / 2)
    assert float(torch.autograd.grad(target, log)[0]) == pytest.approx(0, abs=1e-9)


def test_triangles_and_hubs_by_hand() -> None:
    state = start(5, 5, PRIOR, PRIOR)
    odds = torch.full((5, 5), -9.0, dtype=torch.float64)
    for i, k in [(0, 1), (1, 2)]:
        odds[i, k] = odds[k, i] = 9.0
    axis = replace(state.row, posterior_log_odds=odds.fill_diagonal_(0.0))
    found = learn_triangles(axis, torch.zeros_like(odds), 0.45, 1.0).triangles
    wanted = torch.zeros_like(found)
    wanted[0, 2] = wanted[2, 0] = 1.0
    assert torch.equal(found, wanted)

    probability = (odds > 0).double()
    log = hub_offset(probability, 3.0)
    mean = 4 / 5 + 3
    assert float(log[0, 1]) == pytest.approx(np.log((0 + 3) / mean) + np.log((1 + 3) / mean))


def test_bound_is_the_evidence_of_the_graph() -> None:
    """One edge among 12 nodes and many matrices, against the integral over its weight."""
    S_row = torch.eye(12, dtype=torch.float64)
    S_row[0, 1] = S_row[1, 0] = -0.35
    S_col, m, prior = 4 * torch.eye(3, dtype=torch.float64), 60, EdgePrior(closure_sd=None)
    fit = fit_edges(S_row, S_col, m, prior, prior)
    assert float(fit.row.probability[0, 1]) > 0.99
    assert int((fit.row.precision != 0).sum()) == 14
    empty = replace(fit.row, precision=torch.eye(12, dtype=torch.float64))
    gain = log_posterior(fit, S_row, S_col, m, prior, prior)
    gain -= log_posterior(EdgeState(empty, fit.col, 1, 0.0, True), S_row, S_col, m, prior, prior)

    w = np.linspace(-0.99, 0.99, 20001)
    form = 24 - 0.7 * w  # the column graph is empty
    log = 0.5 * m * (3 * np.log((2 + w) * (2 - w) / 4) - 36 * np.log(form / 24))
    s2 = float(fit.row.slab_variance)
    slab = np.exp(log - w**2 / (2 * s2)) / np.sqrt(2 * np.pi * s2)
    wanted = np.log(slab.sum() * (w[1] - w[0])) + float(fit.row.log_odds)
    assert wanted > 5
    assert gain == pytest.approx(wanted, abs=0.2)


def test_scores() -> None:
    *_, S_row, S_col = problem("tree", 20, 25, 2, 4)
    fit = fit_edges(S_row, S_col, 2, PRIOR, PRIOR)
    scaling, _ = edge_scores(fit, S_row, S_col, 2, "scaling")
    assert float(scaling[3, 4]) == pytest.approx(abs(float(S_row[3, 4])) / 12.5 * 50**0.5, rel=1e-6)
    z, _ = edge_scores(fit, S_row, S_col, 2, "z")
    assert torch.allclose(edge_scores(fit, S_row, S_col, 2, "compromise")[0], scaling + z)
    for score in edge_scores(fit, S_row, S_col, 2):
        assert float(score.min()) == 0
        assert score.diagonal().abs().max() == 0
        assert torch.equal(score, score.T)
    with pytest.raises(DataError, match="score: found 'best'"):
        edge_scores(fit, S_row, S_col, 2, "best")  # type: ignore[arg-type]


def test_bad_input_is_named() -> None:
    *_, S_row, S_col = problem("tree", 20, 25, 1, 0)
    hole = S_row.clone()
    hole[0, 0] = torch.nan
    lopsided = S_row.clone()
    lopsided[0, 1] += 1
    for bad, message in [
        (hole, "S_row: found NaN"),
        (lopsided, "asymmetric"),
        (2 * S_row, "traces"),
        (S_row[1:], "shape"),
    ]:
        with pytest.raises(DataError, match=message):
            fit_edges(bad, S_col, 1, PRIOR, PRIOR)
    with pytest.raises(DataError, match="num_matrices: found 0"):
        fit_edges(S_row, S_col, 0, PRIOR, PRIOR)
    for prior, message in [
        (EdgePrior(log_odds=torch.zeros(3, 3)), r"log_odds: found shape \(3, 3\); wanted \(20, 20\)"),
        (EdgePrior(log_odds=torch.ones(20, 20).triu()), "asymmetric"),
        (EdgePrior(propensity=torch.zeros(20)), "propensity: found entries"),
        (EdgePrior(propensity=torch.ones(5)), "propensity: found shape"),
    ]:
        with pytest.raises(DataError, match=message):
            fit_edges(S_row, S_col, 1, prior, PRIOR)
    with pytest.raises(DataError, match="slab_scale: found -1"):
        EdgePrior(slab_scale=-1.0)
    with pytest.raises(DataError, match="kind"):
        EdgePrior(kind="dense")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least 2"):
        start(1, 5, PRIOR, PRIOR)
