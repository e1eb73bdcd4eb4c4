"""Pictures of scales and undirected graphs show the numbers that they are given."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from scipy.stats import spearmanr

from embergraph import DataError, plots
from embergraph._drawing import GROUPS, NEGATIVE, POSITIVE
from embergraph.datasets import simulated_matrix
from embergraph.undirected_scores import reliability


@pytest.fixture(autouse=True)
def _own_figures(monkeypatch: pytest.MonkeyPatch):
    before = matplotlib.get_backend()
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("a picture was shown"))
    yield
    plt.close("all")
    plt.switch_backend(before)


def array(matrix: np.ndarray, dim: str = "gene") -> xr.DataArray:
    names = [f"{dim}{i}" for i in range(len(matrix))]
    return xr.DataArray(matrix, dims=(dim, f"{dim}_other"), coords={dim: names, f"{dim}_other": names}, name="rho")


@pytest.fixture
def graph() -> xr.DataArray:
    matrix = np.eye(5)
    for a, b, weight in ((0, 1, 0.5), (1, 3, -0.2), (0, 3, 0.1)):
        matrix[a, b] = matrix[b, a] = weight
    return array(matrix)


@pytest.fixture
def scales() -> xr.Dataset:
    mean = np.array([0.5, -1.0, 0.2, 0.3])
    parts = {"log_u": mean, "log_u_lower": mean - 0.1, "log_u_upper": mean + 0.3}
    return xr.Dataset({name: ("cell", values) for name, values in parts.items()})


def lines_of(ax) -> np.ndarray:
    found = [s for c in ax.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    return np.array(found)


def legend_of(ax) -> dict[str, str]:
    legend = ax.get_legend()
    handles = zip(legend.get_texts(), legend.legend_handles, strict=True)
    return {text.get_text(): to_hex(handle.get_color()) for text, handle in handles}


def test_scales_are_sorted_with_their_intervals(scales) -> None:
    ax = plots.plot_scales(scales)
    ax.figure.canvas.draw()
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, -1.0], [1, 0.2], [2, 0.3], [3, 0.5]])
    np.testing.assert_allclose(lines_of(ax)[0], [[0, -1.1], [0, -0.7]])
    assert ax.get_legend() is None
    plain = plots.plot_scales(scales[["log_u"]])
    assert lines_of(plain).size == 0


def test_scales_by_group_and_of_draws(scales) -> None:
    ax = plots.plot_scales(scales, labels=["b", "a", "a", "b"])
    assert legend_of(ax) == {"a": GROUPS[0], "b": GROUPS[1]}
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, -1.0], [1, 0.2]])
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[2, 0.3], [3, 0.5]])
    draws = np.random.default_rng(0).normal(np.array([2.0, -2.0]), 1.0, size=(2, 4000, 2))
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset({"log_v": (("chain", "draw", "gene"), draws)})})
    ax = plots.plot_scales(tree, name="log_v", interval=0.8)
    np.testing.assert_allclose(lines_of(ax)[1], [[1, 2 - 1.2816], [1, 2 + 1.2816]], atol=0.08)


def test_scales_that_cannot_be_drawn(scales) -> None:
    cases = [(scales, {"name": "log_w"}), (scales, {"name": "log_v"}), (scales, {"labels": ["a"]})]
    cases.append((scales.expand_dims(replicate=2), {}))
    for data, settings in cases:
        with pytest.raises(DataError, match="found"):
            plots.plot_scales(data, **settings)


def test_matrix_is_ordered_by_group(graph) -> None:
    labels = np.array(["b", "a", "b", "a", "c"])
    ax = plots.plot_graph_matrix(graph, labels=labels)
    ax.figure.canvas.draw()
    order = [1, 3, 0, 2, 4]
    wanted = np.abs(graph.values - np.eye(5))[np.ix_(order, order)]
    np.testing.assert_array_equal(ax.images[0].get_array(), wanted)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    np.testing.assert_allclose(ax.get_yticks(), [0.5, 2.5, 4])
    assert plots.plot_graph_matrix(graph).get_ylabel() == "cluster"
    assert plots.plot_graph_matrix(0 * graph).images[0].get_clim() == (0, 1)
    with pytest.raises(DataError, match="labels"):
        plots.plot_graph_matrix(graph, labels=labels[:3])
    with pytest.raises(DataError, match="mirror"):
        plots.plot_graph_matrix(array(np.triu(graph.values)))


def test_undirected_graph_has_its_edges_signs_and_groups(graph) -> None:
    ax = plots.plot_undirected(graph, labels=["b", "a", "b", "a", "c"])
    ax.figure.canvas.draw()
    edges = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert [(len(c.get_segments()), to_hex(c.get_edgecolor()[0])) for c in edges] == [(2, POSITIVE), (1, NEGATIVE)]
    widths = edges[0].get_linewidths()
    assert widths[0] > widths[1]
    nodes = next(c for c in ax.collections if isinstance(c, PathCollection))
    assert [to_hex(color) for color in nodes.get_facecolor()] == [GROUPS[1], GROUPS[0], GROUPS[0]]
    assert legend_of(ax) == {"a": GROUPS[0], "b": GROUPS[1]}  # the node of group c has no edge
    assert sorted(text.get_text() for text in ax.texts) == ["gene0", "gene1", "gene3"]
    assert ax.get_title() == "3 genes, 3 edges (2 without edges left out)"
    again = plots.plot_undirected(graph, labels=["b", "a", "b", "a", "c"])
    np.testing.assert_array_equal(nodes.get_offsets(), again.collections[-1].get_offsets())
    assert plots.plot_undirected(0 * graph).get_title().startswith("0 genes, 0 edges")


def test_more_groups_than_colours_share_grey() -> None:
    size = 60
    ring = array(np.roll(np.eye(size), 1, 0) + np.roll(np.eye(size), -1, 0), "cell")
    labels = [f"{min(i // 4, 12):02d}" for i in range(size)]
    ax = plots.plot_undirected(ring, labels=labels)
    assert not ax.texts  # too many names to read
    found = legend_of(ax)
    assert len(found) == 11
    assert found["3 others"] == "#bbbbbb"
    assert "12" in found  # the largest group


def test_reliability_shows_shares_intervals_and_counts() -> None:
    rng = np.random.default_rng(0)
    upper = np.triu(rng.random((40, 40)), 1)
    edges = np.triu(rng.random((40, 40)) < upper, 1)
    table = reliability(upper + upper.T, edges | edges.T)
    ax = plots.plot_reliability(table)
    ax.figure.canvas.draw()
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), np.stack([table["stated"], table["observed"]], 1))
    bars = lines_of(ax)[:, :, 1]
    inside = (bars[:, 0] <= table["observed"].values) & (table["observed"].values <= bars[:, 1])
    assert inside.all()
    assert bars.min() >= 0
    assert bars.max() <= 1 + 1e-12
    assert [text.get_text() for text in ax.texts] == [str(count) for count in table["count"].values]
    with pytest.raises(DataError, match="'count'"):
        plots.plot_reliability(table.drop_vars("count"))


def test_tail_dependence_shows_in_the_data_and_not_in_the_copula() -> None:
    data = simulated_matrix(1000, 30, strength=0.6, noise_law="lognormal", graph="ring")
    genes = [data["expression"][:, i] for i in (0, 15)]
    axes = plots.plot_tail_dependence(*(gene.rename(f"g{i}") for i, gene in enumerate(genes)))
    axes[0].figure.canvas.draw()
    shares = [float(ax.get_title().split(": ")[1].split("%")[0]) for ax in axes]
    assert shares[0] > 3 > 1.8 > shares[1]
    points = axes[0].lines[0].get_xydata()
    assert spearmanr(*points.T).statistic == pytest.approx(spearmanr(*genes).statistic)
    assert spearmanr(points[:, 0], genes[0]).statistic == pytest.approx(1)
    assert axes[0].get_xlabel() == "g0 (normal score)"
    clean = plots.plot_tail_dependence(*(data["true_expression"][:, i] for i in (0, 15)))
    assert float(clean[0].get_title().split(": ")[1].split("%")[0]) < 2.5
    given = plt.subplots(1, 2)[1]
    assert plots.plot_tail_dependence(*genes, axes=given)[1] is given[1]


@pytest.mark.parametrize(
    "genes",
    [
        (np.arange(9.0), np.arange(9.0)),
        (np.arange(20.0), np.arange(19.0)),
        (np.arange(20.0), np.ones(20)),
        (np.arange(20.0), np.where(np.arange(20) == 3, np.nan, np.arange(20))),
    ],
)
def test_tail_dependence_needs_two_genes_that_vary(genes) -> None:
    with pytest.raises(DataError, match="first, second"):
        plots.plot_tail_dependence(*genes)
