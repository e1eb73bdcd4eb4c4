"""Projection to DAGs against its definition (binary search, then add-back) written with networkx."""

import networkx as nx
import numpy as np
import pytest
import torch

from embergraph.models.parts.errors import DataError, NumericalError
from embergraph.models.parts.projection import (
    _allowed_pairs,
    _allowed_pairs_packed,
    is_acyclic,
    project,
    topological_order,
)


def digraph(weights: np.ndarray) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(weights)))
    graph.add_edges_from(zip(*np.nonzero(weights), strict=True))
    return graph


def acyclic(weights: np.ndarray) -> bool:
    return nx.is_directed_acyclic_graph(digraph(weights))


def by_definition(weights: np.ndarray) -> np.ndarray:
    """Threshold at the smallest magnitude that leaves a DAG, then try the excluded entries by size."""
    weights = weights * (1 - np.eye(len(weights)))
    magnitude = np.abs(weights)
    levels = np.unique(np.append(magnitude, 0.0))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if acyclic(weights * (magnitude > levels[middle])):
            high = middle
        else:
            low = middle + 1
    out = weights * (magnitude > levels[low])
    excluded = [(a, b) for a, b in zip(*np.nonzero(weights), strict=True) if magnitude[a, b] <= levels[low]]
    for a, b in sorted(excluded, key=lambda ab: (-magnitude[ab], ab)):
        out[a, b] = weights[a, b]
        if not acyclic(out):
            out[a, b] = 0.0
    return out


def random_matrices(count: int) -> list[np.ndarray]:
    """Dense and sparse matrices with and without ties, diagonals and 2-cycles."""
    rng = np.random.default_rng(0)
    out = []
    for index in range(count):
        p = int(rng.integers(2, 9))
        weights = rng.normal(size=(p, p)) * (rng.random((p, p)) < rng.uniform(0.1, 1.0))
        if index % 3 == 0:
            weights = np.round(2 * weights) / 2
        if index % 5 == 0:
            weights = np.sign(weights)
        out.append(weights)
    return out


def test_equals_the_definition_and_is_maximal_on_1000_matrices() -> None:
    changed = 0
    for weights in random_matrices(1000):
        result = project(torch.as_tensor(weights))
        networks = result.networks.numpy()
        loopless = weights * (1 - np.eye(len(weights)))
        np.testing.assert_array_equal(networks, by_definition(weights))
        assert acyclic(networks)
        removed = loopless != networks
        assert not networks[removed].any()
        largest = np.abs(loopless[removed]).max(initial=0.0)
        assert result.threshold.item() == largest
        assert result.removed_mass.item() == pytest.approx(
            np.abs(loopless[removed]).sum() / max(np.abs(loopless).sum(), 1e-300)
        )
        for a, b in zip(*np.nonzero(removed), strict=True):
            more = networks.copy()
            more[a, b] = 1.0
            assert not acyclic(more)
        changed += bool(removed.any())
    assert 300 < changed < 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_one_by_one_in_any_leading_shape(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    weights = torch.as_tensor(np.round(rng.normal(size=(4, 25, 6, 6)), 1), dtype=dtype)
    result = project(weights)
    assert result.networks.shape == weights.shape
    assert result.threshold.shape == result.removed_mass.shape == (4, 25)
    for i in range(4):
        for j in range(25):
            single = project(weights[i, j])
            assert torch.equal(single.networks, result.networks[i, j])
            assert single.threshold == result.threshold[i, j]
            torch.testing.assert_close(single.removed_mass, result.removed_mass[i, j])
    assert project(weights[:0]).networks.shape == (0, 25, 6, 6)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.randn(50, 5, 5, generator=torch.Generator().manual_seed(2))
    whole = project(weights)
    monkeypatch.setitem(project.__wrapped__.__globals__, "_CHUNK_ENTRIES", 60)
    assert torch.equal(project(weights).networks, whole.networks)


@pytest.mark.parametrize("p", [1, 2, 5, 16, 17, 33, 64])
def test_packed_reachability_equals_the_general_one(p: int) -> None:
    """Ties, sparse graphs, weights that agree in all but the last bits, and weights next to zero."""
    weights = torch.randn(200, p, p, generator=torch.Generator().manual_seed(p), dtype=torch.float64)
    weights[:50] = (2 * weights[:50]).round() / 2
    weights[50:100] *= weights[50:100].abs() > 1
    weights[100:130] = 1 + 1e-15 * weights[100:130]
    weights[130:150] *= 1e-323
    weights = weights[:: 1 if p < 20 else 10]
    magnitude = weights.abs() * (1 - torch.eye(p))
    assert torch.equal(_allowed_pairs_packed(magnitude), _allowed_pairs(magnitude))
    single = magnitude.float()
    assert torch.equal(_allowed_pairs_packed(single), _allowed_pairs(single))


def test_dense_graph_of_100_genes() -> None:
    weights = torch.randn(100, 100, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    networks = project(weights).networks
    assert acyclic(networks.numpy())
    # A maximal acyclic subgraph of a complete graph keeps exactly one direction of every pair.
    assert torch.equal((networks != 0) ^ (networks != 0).T, ~torch.eye(100, dtype=torch.bool))
    np.testing.assert_array_equal(
        np.abs(networks.numpy()).max(), np.abs((weights - weights.diag().diag()).numpy()).max()
    )


def test_two_cycle_keeps_the_larger_and_ties_go_to_the_first() -> None:
    pair = torch.tensor([[5.0, 0.4], [-0.6, 0.0]])
    result = project(pair)
    assert torch.equal(result.networks, torch.tensor([[0.0, 0.0], [-0.6, 0.0]]))
    assert result.threshold == 0.4
    torch.testing.assert_close(result.removed_mass, torch.tensor(0.4))
    assert pair[0, 0] == 5.0
    tied = project(torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, 1.0, 0.0]])).networks
    assert torch.equal(tied, torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]))


def test_smaller_edges_of_a_broken_cycle_are_added_back() -> None:
    # 0 -> 1 -> 2 -> 0 is broken at its smallest edge (0.3); 0 -> 2 (0.1) is below that and closes no cycle.
    weights = torch.tensor([[0.0, 0.9, 0.1], [0.0, 0.0, 0.8], [0.3, 0.0, 0.0]])
    result = project(weights)
    assert torch.equal(result.networks, torch.tensor([[0.0, 0.9, 0.1], [0.0, 0.0, 0.8], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(result.threshold, torch.tensor(0.3))


def test_acyclic_input_comes_back_as_a_copy() -> None:
    dag = torch.triu(torch.randn(6, 6, generator=torch.Generator().manual_seed(4)), 1).requires_grad_()
    result = project(dag)
    assert torch.equal(result.networks, dag)
    assert result.networks.data_ptr() != dag.data_ptr()
    assert not result.networks.requires_grad
    assert result.threshold == 0
    assert result.removed_mass == 0


@pytest.mark.parametrize("p", [1, 4])
def test_empty_graphs(p: int) -> None:
    result = project(torch.zeros(3, p, p))
    assert not result.networks.any()
    assert not result.threshold.any()
    assert not result.removed_mass.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_weights_that_are_not_finite(value: float) -> None:
    weights = torch.zeros(2, 3, 3)
    weights[1, 0, 2] = value
    with pytest.raises(NumericalError, match=r"1 of 18 weights.*\(1, 0, 2\)"):
        project(weights)


def test_refuses_what_is_not_square() -> None:
    for function in (project, is_acyclic, topological_order):
        with pytest.raises(DataError, match="wanted"):
            function(torch.zeros(3, 2))


def test_is_acyclic_agrees_with_networkx() -> None:
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(600, 6, 6)) * (rng.random((600, 6, 6)) < 0.2) * (1 - np.eye(6))
    expected = np.array([acyclic(w) for w in weights])
    assert 100 < expected.sum() < 500
    np.testing.assert_array_equal(is_acyclic(torch.as_tensor(weights)).numpy(), expected)
    np.testing.assert_array_equal(is_acyclic(torch.as_tensor(weights.reshape(2, 300, 6, 6))).numpy().ravel(), expected)
    chain = torch.diag(torch.ones(30), 1)
    assert is_acyclic(chain)
    chain[30, 0] = 1e-30
    assert not is_acyclic(chain)
    assert not is_acyclic(torch.eye(2))


def test_topological_order_is_the_first_valid_one() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        order = rng.permutation(8)
        weights = np.zeros((8, 8))
        weights[np.ix_(order, order)] = np.triu(rng.normal(size=(8, 8)) * (rng.random((8, 8)) < 0.4), 1)
        expected = list(nx.lexicographical_topological_sort(digraph(weights)))
        assert topological_order(torch.as_tensor(weights)).tolist() == expected
    with pytest.raises(DataError, match="cycle"):
        topological_order(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(DataError, match="one graph"):
        topological_order(torch.zeros(2, 3, 3))
