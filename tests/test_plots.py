"""Pictures show the numbers that they are given: matrices, arrows, dots, intervals and curves are read back."""

import matplotlib
import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch

from embergraph import DataError, plots
from embergraph._layout import layered_layout

GENES = ["Raf", "Mek", "Erk", "Akt"]
EDGE = ("regulator", "target")
NAMES = {"regulator": GENES, "target": GENES}


@pytest.fixture(autouse=True)
def _own_figures(monkeypatch: pytest.MonkeyPatch):
    before = matplotlib.get_backend()
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("a picture was shown"))
    yield
    plt.close("all")
    plt.switch_backend(before)


def weights() -> np.ndarray:
    matrix = np.zeros((4, 4))
    matrix[0, 1], matrix[1, 2], matrix[0, 2], matrix[2, 3] = 0.8, -0.5, 0.05, 1.5
    return matrix


@pytest.fixture
def networks() -> xr.Dataset:
    scaled = np.stack([weights(), -0.5 * weights(), 0 * weights()])
    parts = {"network": scaled, "lower": scaled - 0.1, "upper": scaled + 0.2}
    return xr.Dataset(
        {name: (("cell", *EDGE), part) for name, part in parts.items()},
        coords={"cell": ["a", "b", "c"], **NAMES},
        attrs={"interval": 0.9},
    )


def drawn(ax) -> None:
    ax.figure.canvas.draw()


def tick_names(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_network_shows_the_matrix(networks):
    ax = plots.plot_network(networks.transpose("target", "regulator", "cell"), cell="b")
    drawn(ax)
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), -0.5 * weights())
    assert image.get_clim() == (-0.75, 0.75)
    assert to_hex(image.cmap(image.norm(0.0)))[1:] >= "f5f5f5"  # zero is white
    assert tick_names(ax.xaxis) == tick_names(ax.yaxis) == GENES
    assert ax.get_ylabel() == "regulator"
    assert ax.get_title() == "Network of b"


def test_network_of_zeros_and_of_truth_values(networks):
    assert plots.plot_network(networks, cell="c").images[0].get_clim() == (-1, 1)
    graph = xr.DataArray(weights() != 0, dims=EDGE, coords=NAMES)
    drawn(plots.plot_network(graph))
    drawn(plots.plot_graph(graph))


def test_many_genes_show_names_that_can_be_read():
    names = [f"gene{i}" for i in range(130)]
    wide = xr.DataArray(np.eye(130), dims=EDGE, coords={"regulator": names, "target": names})
    ax = plots.plot_network(wide)
    drawn(ax)
    assert tick_names(ax.xaxis) == names[::3]


def test_given_axes_are_used(networks):
    _, given = plt.subplots(2, 3)
    one = networks.isel(cell=0)
    contrast = one.rename(network="difference")
    losses = xr.DataArray([[3.0, 2.0, 1.0]], dims=("restart", "step"))
    calls = [
        (plots.plot_network, one),
        (plots.plot_graph, one),
        (plots.plot_contrast, contrast),
        (plots.plot_edges, networks),
        (plots.plot_loss, losses),
    ]
    for ax, (function, argument) in zip(given.ravel(), calls, strict=False):
        assert function(argument, ax=ax) is ax
    assert len(plt.get_fignums()) == 1
    drawn(given[0, 0])


def arrows(ax) -> list[FancyArrowPatch]:
    return [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]


def test_graph_draws_edges_above_the_threshold(networks):
    ax = plots.plot_graph(networks, cell="a", threshold=0.1)
    drawn(ax)
    found = {to_hex(arrow.get_edgecolor()): [] for arrow in arrows(ax)}
    for arrow in arrows(ax):
        found[to_hex(arrow.get_edgecolor())].append(arrow.get_linewidth())
    assert {color: len(widths) for color, widths in found.items()} == {plots.POSITIVE: 2, plots.NEGATIVE: 1}
    assert max(found[plots.POSITIVE]) > min(found[plots.POSITIVE]) > found[plots.NEGATIVE][0]
    height = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert height["Raf"] > height["Mek"] > height["Erk"] > height["Akt"]
    assert len(arrows(plots.plot_graph(networks, cell="a", threshold=0))) == 4
    assert len(arrows(plots.plot_graph(networks, cell="c"))) == 0


def test_arrows_end_at_the_boxes_they_link(networks):
    ax = plots.plot_graph(networks, cell="a", threshold=0)
    drawn(ax)
    boxes = {text.get_text(): text.get_bbox_patch().get_window_extent() for text in ax.texts}
    ends = set()
    for arrow in arrows(ax):
        points = arrow.get_transform().transform(arrow.get_path().vertices)
        touched = [name for name, box in boxes.items() if any(box.padded(9).contains(*point) for point in points)]
        ends.add(tuple(sorted(touched)))
    assert ends == {("Mek", "Raf"), ("Erk", "Mek"), ("Erk", "Raf"), ("Akt", "Erk")}


@pytest.mark.parametrize("seed", range(8))
def test_layout_of_random_dags(seed):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((12, 12)) < 0.25, 1)
    graph = nx.relabel_nodes(nx.from_numpy_array(upper, create_using=nx.DiGraph), lambda i: f"g{i}")
    positions, routes = layered_layout(graph)
    assert set(positions) == set(graph)
    assert set(routes) == set(graph.edges)
    for source, target in graph.edges:
        heights = [positions[source][1], *(y for _, y in routes[source, target]), positions[target][1]]
        np.testing.assert_array_equal(np.diff(heights), -1)
    points = [*positions.values()]
    bends = [point for route in routes.values() for point in route]
    for i, (x, y) in enumerate(points):
        others = [a for a, b in points[:i] + points[i + 1 :] + bends if b == y]
        assert all(abs(a - x) > 0.89 for a in others)
    assert layered_layout(graph) == (positions, routes)


def test_layout_of_a_tree_has_no_crossings():
    tree = nx.balanced_tree(2, 3, create_using=nx.DiGraph)
    positions, routes = layered_layout(tree)
    assert not any(routes.values())
    rows: dict[float, list[float]] = {}
    for parent in sorted(tree, key=lambda node: positions[node]):
        rows.setdefault(positions[parent][1], []).extend(sorted(positions[child][0] for child in tree[parent]))
    assert all(row == sorted(row) for row in rows.values())


def test_cyclic_networks_go_on_a_circle():
    graph = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")])
    positions, routes = layered_layout(graph)
    np.testing.assert_allclose(np.linalg.norm(list(positions.values()), axis=1), 4 / 5)
    assert not any(routes.values())


def test_graph_without_edges_or_with_one_node():
    assert layered_layout(nx.empty_graph(3, create_using=nx.DiGraph))[0][1] == (0, 0)
    drawn(plots.plot_graph(xr.DataArray([[0.0]], dims=EDGE, coords={"regulator": ["a"], "target": ["a"]})))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_archetypes_show_posterior_means(count):
    draws = np.random.default_rng(0).normal(size=(2, 5, count, 4, 4))
    posterior = xr.Dataset({"archetypes": (("chain", "draw", "archetype", *EDGE), draws)}, coords=NAMES)
    axes = plots.plot_archetypes(xr.DataTree.from_dict({"posterior": posterior}))
    drawn(axes[0])
    means = draws.mean((0, 1))
    assert len(axes) == count
    for ax, mean in zip(axes, means, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), mean)
        assert ax.images[0].get_clim()[1] == pytest.approx(np.abs(means).max())
    assert [ax.get_title() for ax in axes] == [f"archetype {k}" for k in range(count)]


def test_contrast_marks_intervals_that_exclude_zero():
    difference = xr.DataArray(weights(), dims=EDGE, coords=NAMES)
    half = xr.full_like(difference, 0.1)
    contrast = xr.Dataset({"difference": difference, "lower": difference - half, "upper": difference + half})
    ax = plots.plot_contrast(contrast.assign_attrs(interval=0.8))
    drawn(ax)
    marked = {(GENES[int(row)], GENES[int(column)]) for column, row in ax.collections[0].get_offsets()}
    assert marked == {("Raf", "Mek"), ("Mek", "Erk"), ("Erk", "Akt")}
    assert "80% interval" in ax.get_xlabel()


def test_edges_are_sorted_by_strength(networks):
    ax = plots.plot_edges(networks, num_edges=3, labels=["one", "two", "three"])
    drawn(ax)
    assert tick_names(ax.yaxis) == ["Erk → Akt", "Raf → Mek", "Mek → Erk"]
    assert ax.yaxis_inverted()
    means = [line for line in ax.lines if line.get_marker() not in ("None", "none", None)]
    np.testing.assert_allclose(
        [line.get_xdata() for line in means], np.outer([1, -0.5, 0], [1.5, 0.8, -0.5]), atol=1e-12
    )
    segments = [c.get_segments() for c in ax.collections[:3]]
    np.testing.assert_allclose([s[0] for s in segments[0][0]], [1.4, 1.7])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two", "three"]
    assert len(tick_names(plots.plot_edges(networks, num_edges=99).yaxis)) == 4  # no row for an absent edge


def test_loss_draws_every_restart():
    steps = np.arange(200.0)
    values = np.stack([1000 - steps, np.where(steps < 150, 900 - 2 * steps, np.nan)])
    ax = plots.plot_loss(xr.DataArray(values, dims=("restart", "step")))
    drawn(ax)
    first, second = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(first[10:], 1000 - steps[10:] + 1.5)  # mean over the last 4 steps
    assert np.isnan(second[150:]).all()
    assert np.isfinite(second[:150]).all()
    assert ax.get_ylim()[0] < 602 < ax.get_ylim()[1]
    tree = xr.DataTree.from_dict({"sample_stats": xr.Dataset({"loss": (("restart", "step"), values)})})
    np.testing.assert_array_equal(plots.plot_loss(tree).lines[0].get_ydata(), first)


BAD = {
    "several cells": lambda n: plots.plot_network(n),
    "unknown cell": lambda n: plots.plot_network(n, cell="z"),
    "no network": lambda n: plots.plot_graph(n.drop_vars("network"), cell="a"),
    "wrong type": lambda n: plots.plot_network(n["network"].values),
    "wrong dims": lambda n: plots.plot_network(n["network"].isel(cell=0, target=0)),
    "NaN": lambda n: plots.plot_network(n.where(n["network"] > 0), cell="a"),
    "cell of none": lambda n: plots.plot_network(n["network"].isel(cell=0, drop=True), cell="a"),
    "negative threshold": lambda n: plots.plot_graph(n, cell="a", threshold=-1),
    "no archetypes": lambda n: plots.plot_archetypes(xr.DataTree.from_dict({"posterior": xr.Dataset({"x": 1})})),
    "no tree": lambda n: plots.plot_archetypes(n),
    "no interval": lambda n: plots.plot_contrast(n.rename(network="difference").drop_vars("lower")),
    "contrast of cells": lambda n: plots.plot_contrast(n.rename(network="difference")),
    "too many groups": lambda n: plots.plot_edges(n.isel(cell=[0] * 11)),
    "no edges": lambda n: plots.plot_edges(n, num_edges=0),
    "labels": lambda n: plots.plot_edges(n, labels=["one"]),
    "no losses": lambda n: plots.plot_loss(xr.DataArray(np.zeros((1, 0)), dims=("restart", "step"))),
    "no history": lambda n: plots.plot_loss(n),
    "tree without loss": lambda n: plots.plot_loss(xr.DataTree.from_dict({"posterior": n})),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_drawing(networks, case):
    with pytest.raises(DataError, match=r"found .*wanted"):
        BAD[case](networks)
    assert not plt.get_fignums()
