"""Scores of undirected graphs by hand, and the traps that they have."""

import itertools

import networkx as nx
import numpy as np
import pytest
import xarray as xr

from embergraph.models.parts.errors import DataError
from embergraph.undirected_scores import (
    ami,
    average_precision,
    balanced_ami,
    brier_score,
    nominal_assortativity,
    numeric_assortativity,
    precision_at,
    reliability,
    trapezoid_area,
)


def symmetric(seed: int, size: int = 12) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).normal(size=(size, size)), 1)
    return upper + upper.T


def graph(seed: int, size: int = 12, share: float = 0.2) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).random((size, size)) < share, 1)
    return (upper | upper.T).astype(float)


def by_hand(score: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision at the rank of every true edge, for scores without ties."""
    pairs = list(itertools.combinations(range(len(score)), 2))
    ranked = sorted(pairs, key=lambda pair: -abs(score[pair]))
    hits = [truth[pair] != 0 for pair in ranked]
    return float(np.mean([sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]))


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_the_mean_precision_at_true_edges(seed: int) -> None:
    score, truth = symmetric(seed), graph(seed + 10)
    assert average_precision(score, truth) == pytest.approx(by_hand(score, truth))
    with_loops = score + 100 * np.eye(12), truth + np.eye(12)
    assert average_precision(*with_loops) == average_precision(score, truth)
    assert average_precision(-score, 3 * truth) == average_precision(score, truth)
    flip = np.random.default_rng(seed).choice([-1, 1], 12)
    assert average_precision(flip[:, None] * score * flip, truth) == average_precision(score, truth)
    assert average_precision(truth + 0.1 * score / np.abs(score).max(), truth) == 1


def test_the_trapezoid_rewards_an_empty_graph() -> None:
    truth = graph(0, 30, 0.05)
    share = truth.sum() / (30 * 29)
    empty = np.zeros((30, 30))
    assert average_precision(empty, truth) == pytest.approx(share)
    assert trapezoid_area(empty, truth) == pytest.approx((1 + share) / 2)
    assert trapezoid_area(truth, truth) == pytest.approx(1)


def test_a_truth_without_edges_scores_zero() -> None:
    for function in (average_precision, trapezoid_area):
        assert function(symmetric(0), np.eye(12)) == 0.0


def test_precision_at_shares_ties() -> None:
    score, truth = np.zeros((4, 4)), np.zeros((4, 4))
    for pair, value in {(0, 1): 3.0, (0, 2): -2.0, (1, 2): 1.0, (1, 3): 1.0}.items():
        score[pair] = score[pair[::-1]] = value
    for pair in ((0, 1), (1, 2)):
        truth[pair] = truth[pair[::-1]] = 1
    found = [precision_at(score, truth, k) for k in (1, 2, 3, 4, 6)]
    np.testing.assert_allclose(found, [1, 1 / 2, 1.5 / 3, 2 / 4, 2 / 6])
    for k in (0, 7):
        with pytest.raises(DataError, match="num_edges"):
            precision_at(score, truth, k)


def test_names_are_matched() -> None:
    names = [f"g{i}" for i in range(12)]
    coords = {"gene": names, "gene_other": names}
    score, truth = (xr.DataArray(m, dims=("gene", "gene_other"), coords=coords) for m in (symmetric(0), graph(1)))
    order = np.random.default_rng(0).permutation(12)
    shuffled = truth.isel(gene=order, gene_other=order)
    assert average_precision(score, shuffled) == average_precision(score, truth)
    assert average_precision(score, shuffled.values) != average_precision(score, truth)
    with pytest.raises(DataError, match="names along gene"):
        average_precision(score, truth.assign_coords(gene=[f"h{i}" for i in range(12)]))
    with pytest.raises(DataError, match="dims"):
        average_precision(score, truth.rename(gene="cell", gene_other="cell_other"))


@pytest.mark.parametrize(
    ("score", "truth", "message"),
    [
        (np.ones((3, 4)), np.ones((3, 4)), "shape"),
        (np.ones((1, 1)), np.ones((1, 1)), "at least 2 nodes"),
        (symmetric(0), graph(0, 11), "same nodes"),
        (np.triu(symmetric(0)), graph(0), "mirror"),
        (symmetric(0) + np.where(np.arange(12) == 3, np.nan, 0), graph(0), "NaN"),
    ],
)
def test_bad_matrices_are_refused(score, truth, message: str) -> None:
    with pytest.raises(DataError, match=message):
        average_precision(score, truth)


def test_nan_on_the_diagonal_does_no_harm() -> None:
    score = symmetric(0)
    np.fill_diagonal(score, np.nan)
    assert average_precision(score, graph(1)) == average_precision(symmetric(0), graph(1))


def test_nominal_assortativity_by_newmans_formula() -> None:
    matrix, labels = graph(3, 20, 0.3), np.random.default_rng(0).choice(["a", "b", "NA"], 20)
    kinds = np.unique(labels)
    mixing = np.array([[matrix[np.ix_(labels == a, labels == b)].sum() for b in kinds] for a in kinds]) / matrix.sum()
    chance = (mixing.sum(0) * mixing.sum(1)).sum()
    wanted = (np.trace(mixing) - chance) / (1 - chance)
    assert nominal_assortativity(matrix, labels) == pytest.approx(wanted)
    assert nominal_assortativity(5 * matrix + np.eye(20), labels) == pytest.approx(wanted)  # weights and self loops
    known = labels != "NA"
    dropped = nominal_assortativity(matrix[np.ix_(known, known)], labels[known])
    assert nominal_assortativity(matrix, labels, drop=["NA"]) == pytest.approx(dropped) != wanted


def test_numeric_assortativity_is_that_of_networkx_and_depends_on_the_order_of_codes() -> None:
    matrix, values = graph(3, 20, 0.3), np.random.default_rng(0).integers(0, 3, 20)
    network = nx.from_numpy_array(matrix)
    nx.set_node_attributes(network, dict(enumerate(values.tolist())), "value")
    found = numeric_assortativity(matrix, values)
    assert found == pytest.approx(nx.numeric_assortativity_coefficient(network, "value"))
    assert abs(numeric_assortativity(matrix, (values + 1) % 3) - found) > 0.01
    assert numeric_assortativity(matrix + np.eye(20), values) == found
    with pytest.raises(DataError, match="values"):
        numeric_assortativity(matrix, np.full(20, "a"))
    with pytest.raises(DataError, match="values"):
        numeric_assortativity(matrix, np.where(np.arange(20) == 3, np.nan, 1.0))


def test_assortativity_without_anything_to_tell_is_zero() -> None:
    labels = np.arange(6) % 2
    empty, lonely = np.eye(6), np.eye(6)
    lonely[0, 2] = lonely[2, 0] = 1  # the only edge joins equal labels
    for matrix in (empty, lonely):
        assert nominal_assortativity(matrix, labels) == 0
        assert numeric_assortativity(matrix, labels) == 0
    assert nominal_assortativity(graph(0, 6, 0.9), np.full(6, "a")) == 0
    assert nominal_assortativity(lonely, labels, drop=[0, 1]) == 0
    with pytest.raises(DataError, match="labels"):
        nominal_assortativity(empty, labels[:5])


def test_ami_and_its_limits() -> None:
    labels = np.array(["a", "a", "b", "b", "NA", "NA"])
    assert ami(labels, [5, 5, 0, 0, 1, 1]) == pytest.approx(1)
    assert ami(labels, np.zeros(6)) == pytest.approx(0)
    assert ami(np.zeros(6), np.zeros(6)) == 1
    assert ami(labels, [5, 5, 0, 0, 5, 0], drop=["NA"]) == pytest.approx(1)
    assert ami(labels, [5, 5, 0, 0, 5, 0]) < 0.9
    assert ami(["NA"], [0], drop=["NA"]) == 0
    rng = np.random.default_rng(0)
    chance = [ami(rng.integers(0, 4, 200), rng.integers(0, 5, 200)) for _ in range(40)]
    assert abs(np.mean(chance)) < 0.005
    with pytest.raises(DataError, match="shapes"):
        ami(labels, [1, 2])


def test_balanced_ami_weighs_small_classes_like_large_ones() -> None:
    labels = np.repeat(["large", "small", "tiny"], [200, 20, 20])
    merged = np.repeat([0, 1, 1], [200, 20, 20])  # the small classes are not told apart
    split = np.concatenate([np.arange(200) % 2, np.full(20, 2), np.full(20, 3)])
    assert ami(labels, merged) > ami(labels, split)
    assert balanced_ami(labels, merged) < balanced_ami(labels, split)
    np.testing.assert_allclose(balanced_ami(labels, merged), ami(np.repeat([0, 1, 2], 80), np.repeat([0, 1, 1], 80)))
    assert balanced_ami(labels, merged) != pytest.approx(balanced_ami(merged, labels), abs=1e-3)
    even = np.repeat([0, 1, 2], 30)
    clusters = np.random.default_rng(0).integers(0, 3, 90)
    assert balanced_ami(even, clusters) == pytest.approx(ami(even, clusters))
    assert balanced_ami(labels, np.zeros(240)) == pytest.approx(0)
    assert balanced_ami(np.zeros(5), np.arange(5)) == pytest.approx(0)
    assert balanced_ami(["NA"], [1], drop=["NA"]) == 0


def test_reliability_counts_pairs() -> None:
    probability, truth = np.zeros((4, 4)), np.zeros((4, 4))
    entries = {
        (0, 1): (0.95, 1),
        (0, 2): (1.0, 0),
        (0, 3): (0.5, 1),
        (1, 2): (0.1, 0),
        (1, 3): (0.15, 1),
        (2, 3): (0, 0),
    }
    for (a, b), (p, edge) in entries.items():
        probability[a, b] = probability[b, a] = p
        truth[a, b] = truth[b, a] = edge
    table = reliability(probability, truth)
    np.testing.assert_array_equal(table["count"], [1, 2, 1, 2])
    np.testing.assert_allclose(table["stated"], [0, 0.125, 0.5, 0.975])
    np.testing.assert_allclose(table["observed"], [0, 0.5, 1, 0.5])
    np.testing.assert_allclose(table["lower"], [0, 0.1, 0.4, 0.95])
    np.testing.assert_allclose(table["upper"], [0.1, 0.2, 0.6, 1])
    assert table.attrs == {"expected_edges": pytest.approx(2.7), "true_edges": 3}
    squares = [(p - edge) ** 2 for p, edge in entries.values()]
    assert brier_score(probability, truth) == pytest.approx(np.mean(squares))


def test_reliable_probabilities_are_found_reliable_and_shifted_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    upper = np.triu(rng.beta(0.5, 3, size=(300, 300)), 1)
    edges = np.triu(rng.random((300, 300)) < upper, 1)
    probability, truth = upper + upper.T, edges | edges.T

    def distance(stated: np.ndarray) -> float:
        table = reliability(stated, truth)
        error = np.sqrt(table["stated"] * (1 - table["stated"]) / table["count"])
        return float(np.abs((table["observed"] - table["stated"]) / error).max())

    assert distance(probability) < 4
    assert distance(probability**0.5) > 10
    assert brier_score(probability, truth) < brier_score(probability**0.5, truth)
    share = edges.sum() / (300 * 299 / 2)
    assert brier_score(np.full((300, 300), share), truth) == pytest.approx(share * (1 - share))


@pytest.mark.parametrize("bins", [(0, 0.5), (0.1, 1), (0, 0.5, 0.5, 1), (0,)])
def test_bad_bins_and_probabilities_are_refused(bins: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="bins"):
        reliability(graph(0), graph(1), bins=bins)
    for wrong in (-graph(0), 1.1 * graph(0)):
        with pytest.raises(DataError, match="probability"):
            brier_score(wrong, graph(1))
