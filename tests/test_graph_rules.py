"""Rules that turn scores into graphs, clusters of graphs, and undirected graphs in networkx."""

import networkx as nx
import numpy as np
import pytest
import xarray as xr

from embergraph import to_networkx
from embergraph.datasets import simulated_matrix
from embergraph.graph_rules import best_clusters, clusters, strongest, threshold, top_k
from embergraph.models.parts.errors import DataError
from embergraph.undirected_scores import balanced_ami


def array(matrix: np.ndarray, dim: str = "gene") -> xr.DataArray:
    names = [f"{dim}{i}" for i in range(len(matrix))]
    return xr.DataArray(matrix, dims=(dim, f"{dim}_other"), coords={dim: names, f"{dim}_other": names})


def random_scores(seed: int = 0, size: int = 9) -> xr.DataArray:
    upper = np.triu(np.random.default_rng(seed).normal(size=(size, size)))
    return array(upper + upper.T)


def cliques(sizes: tuple[int, ...]) -> xr.DataArray:
    return array(nx.to_numpy_array(nx.disjoint_union_all(nx.complete_graph(size) for size in sizes)), "cell")


@pytest.mark.parametrize("k", [1, 3, 8, 50])
@pytest.mark.parametrize("seed", range(3))
def test_top_k_keeps_pairs_that_either_side_chose(seed: int, k: int) -> None:
    scores = random_scores(seed)
    kept = top_k(scores, k).values
    strength = np.abs(scores.values)
    np.fill_diagonal(strength, -1.0)
    chosen = np.array([[np.sum(row > row[j]) < k for j in range(9)] for row in strength]) & ~np.eye(9, dtype=bool)
    np.testing.assert_array_equal(kept != 0, chosen | chosen.T)
    np.testing.assert_array_equal(kept[kept != 0], scores.values[kept != 0])  # none is doubled
    assert (np.diag(kept) == 0).all()


def test_top_k_never_chooses_the_diagonal_or_zeros() -> None:
    scores = array(np.diag([5.0, 5.0, 5.0]))
    scores[0, 1] = scores[1, 0] = -0.1
    assert np.argwhere(top_k(scores, 2).values).tolist() == [[0, 1], [1, 0]]
    assert top_k(scores, 2)["gene"].equals(scores["gene"])


def test_threshold_and_strongest_agree() -> None:
    scores = random_scores()
    strength = np.sort(np.abs(scores.values[np.triu_indices(9, 1)]))[::-1]
    graph = threshold(scores, float(strength[5]))
    listed = strongest(scores, 5)
    assert (graph != 0).sum() == 10
    np.testing.assert_allclose(np.abs(listed["score"]), strength[:5])
    for a, b, score in zip(listed["gene"].values, listed["gene_other"].values, listed["score"].values, strict=True):
        assert float(graph.sel(gene=a, gene_other=b)) == score
    assert strongest(threshold(scores, 100.0), 5).sizes["edge"] == 0
    assert strongest(scores, 1000).sizes["edge"] == 36


def test_clusters_are_the_cliques_largest_first() -> None:
    graph = cliques((3, 5, 1, 4))
    found = clusters(graph)
    assert found.dims == ("cell",)
    assert found["cell"].equals(graph["cell"])
    assert found.values.tolist() == [2] * 3 + [0] * 5 + [3] + [1] * 4
    assert clusters(-2 * graph).equals(found)  # neither sign nor self loops count
    assert clusters(graph + 9 * np.eye(13)).equals(found)
    assert clusters(graph * 0).values.tolist() == list(range(13))


def test_resolution_and_seed() -> None:
    graph = threshold(simulated_matrix(80, 10, graph="erdos_renyi")["true_cell_precision"], 0.0)
    numbers = [len(np.unique(clusters(graph, resolution=r))) for r in (0.1, 1.0, 5.0)]
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[-1]
    assert clusters(graph, seed=3).equals(clusters(graph, seed=3))


def test_best_clusters_search_the_grid() -> None:
    labels = np.repeat(["a", "b", "c"], [10, 10, 5])
    noise = np.random.default_rng(0).normal(size=(25, 25))
    scores = array(2.0 * (labels[:, None] == labels) + 0.3 * (noise + noise.T), "cell")
    found = best_clusters(scores, labels, ks=(1, 4, 30), resolutions=(0.1, 1.0))
    assert found["agreement"].shape == (2, 2)  # 30 partners are more than there are
    best = found.attrs["best_agreement"]
    assert best == found["agreement"].max() > 0.95
    at = {"k": found.attrs["best_k"], "resolution": found.attrs["best_resolution"]}
    assert found["agreement"].sel(at) == best
    again = clusters(top_k(scores, at["k"]) != 0, resolution=at["resolution"])
    np.testing.assert_array_equal(found["clusters"], again)
    balanced = best_clusters(scores, labels, ks=(4,), resolutions=(1.0,), weighted=True, agreement=balanced_ami)
    assert balanced.attrs["best_agreement"] > 0.95
    with pytest.raises(DataError, match="ks, resolutions"):
        best_clusters(scores, labels, ks=(25,))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (np.eye(3), "wanted a DataArray"),
        (xr.DataArray(np.eye(3), dims=("regulator", "target")), "dims"),
        (array(np.triu(np.ones((3, 3)))), "mirror"),
        (array(np.full((3, 3), np.nan)), "NaN"),
        (array(np.ones((3, 3))).assign_coords(gene_other=["x", "y", "z"]), "other names"),
        (array(np.ones((1, 1))), "at least 2 nodes"),
    ],
)
def test_bad_graphs_are_refused(graph, message: str) -> None:
    rules = (lambda g: top_k(g, 1), lambda g: threshold(g, 0.1), lambda g: strongest(g, 1), clusters)
    for rule in rules:
        with pytest.raises(DataError, match=message):
            rule(graph)


def test_bad_settings_are_refused() -> None:
    scores = random_scores()
    for rule, value in ((top_k, 0), (strongest, 0), (threshold, -0.1), (threshold, np.nan)):
        with pytest.raises(DataError, match="found"):
            rule(scores, value)
    with pytest.raises(DataError, match="resolution"):
        clusters(scores, resolution=0)


@pytest.fixture
def both() -> xr.Dataset:
    variables = {}
    for axis, size in (("cell", 5), ("gene", 4)):
        rho = random_scores(size, size).values / 3
        np.fill_diagonal(rho, 0)
        parts = {
            "partial_correlation": rho,
            "lower": rho - 0.1,
            "upper": rho + 0.1,
            "edge_probability": np.abs(rho) / 3,
        }
        parts["score"] = 10 * rho
        variables |= {f"{axis}_{name}": ((axis, f"{axis}_other"), values) for name, values in parts.items()}
    coords = {
        f"{axis}{side}": [f"{axis}{i}" for i in range(n)]
        for axis, n in (("cell", 5), ("gene", 4))
        for side in ("", "_other")
    }
    return xr.Dataset(variables, coords)


def test_undirected_networkx_graph_has_names_weights_and_facts(both: xr.Dataset) -> None:
    graph = to_networkx(both, axis="gene", threshold=0.1)
    assert not graph.is_directed()
    assert list(graph) == ["gene0", "gene1", "gene2", "gene3"]
    rho = both["gene_partial_correlation"]
    assert graph.size() == int((np.abs(rho) > 0.1).sum()) // 2 > 0
    for a, b, about in graph.edges(data=True):
        at = {"gene": a, "gene_other": b}
        assert about["weight"] == float(rho.sel(at))
        for fact in ("lower", "upper", "edge_probability"):
            assert about[fact] == float(both[f"gene_{fact}"].sel(at))
    assert to_networkx(both[["cell_score"]]).edges["cell0", "cell1"] == {"weight": float(both["cell_score"][0, 1])}
    alone = to_networkx(simulated_matrix(10, 12)["true_gene_precision"])
    assert nx.is_tree(alone)


def test_the_axis_must_be_clear(both: xr.Dataset) -> None:
    for axis in (None, "peak"):
        with pytest.raises(DataError, match="axis: found"):
            to_networkx(both, axis=axis)
    with pytest.raises(DataError, match="axis: found 'gene'"):
        to_networkx(both[["cell_score"]], axis="gene")
    with pytest.raises(DataError, match="wanted 'network'"):
        to_networkx(both[["cell_lower"]])
