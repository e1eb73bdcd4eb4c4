"""Pictures of environments show the numbers that they are given."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from embergraph import environment_plots as plots
from embergraph._drawing import GROUPS, NEGATIVE, POSITIVE
from embergraph._matrix_drawing import OTHER
from embergraph.models.parts.errors import DataError

SHIFT = np.array([[0.0, 0.0], [3.0, 0.1], [0.2, -2.0]])
PROBABILITY = np.array([[0.0, 0.0], [0.9, 0.2], [0.3, 0.95]])


@pytest.fixture(autouse=True)
def _own_figures(monkeypatch: pytest.MonkeyPatch):
    before = matplotlib.get_backend()
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("a picture was shown"))
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.fixture
def environments() -> xr.Dataset:
    parts = {"target_probability": PROBABILITY, "shift": SHIFT, "shift_lower": SHIFT - 0.5, "shift_upper": SHIFT + 0.25}
    return xr.Dataset(
        {name: (("condition", "latent"), values) for name, values in parts.items()},
        coords={"condition": ["control", "pma", "ly"], "latent": ["z_a", "z_b"]},
    )


@pytest.fixture
def latents() -> xr.Dataset:
    codes = np.repeat([0, 1, 2], [5, 10, 20])
    noise = np.random.default_rng(0).normal(size=(35, 3)) * 0.1
    centres = np.array([[0.0, 0.0, 0.0], [0.0, 4.0, 0.0], [3.0, 0.0, 0.1]])
    return xr.Dataset(
        {"mean": (("cell", "latent"), centres[codes] + noise), "environment": ("cell", codes)},
        coords={"condition": ["control", "pma", "ly"], "latent": ["z_a", "z_b", "z_c"]},
    )


@pytest.fixture
def effects() -> xr.Dataset:
    mean = np.array([[0.0, 0.0, 0.0, 0.0], [0.5, -2.0, 3.0, 0.01]])
    half = np.array([[0.1, 0.1, 0.1, 0.1], [0.2, 0.5, 5.0, 0.2]])
    parts = {"effect": mean, "effect_lower": mean - half, "effect_upper": mean + half}
    return xr.Dataset(
        {name: (("condition", "gene"), values) for name, values in parts.items()},
        coords={"condition": ["control", "drug"], "gene": ["A", "B", "C", "D"]},
        attrs={"units": "log2 ratio", "control": "control", "interval": 0.8},
    )


def lines_of(ax) -> np.ndarray:
    return np.array([s for c in ax.collections if isinstance(c, LineCollection) for s in c.get_segments()])


def points_of(ax) -> list[tuple[float, float, str]]:
    marked = [line for line in ax.lines if line.get_marker() in "oD"]
    return [(x, y, to_hex(line.get_color())) for line in marked for x, y in zip(*line.get_data(), strict=True)]


def ticks_of(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_targets_are_probabilities_with_the_sign_of_the_shift(environments) -> None:
    ax = plots.plot_targets(environments)
    np.testing.assert_allclose(ax.images[0].get_array(), [[0, 0], [0.9, 0.2], [0.3, -0.95]])
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-1, 1)
    assert ticks_of(ax.yaxis) == ["control", "pma", "ly"]
    assert ticks_of(ax.xaxis) == ["z_a", "z_b"]
    written = {(text.get_text(), *text.get_position()) for text in ax.texts}
    assert written == {("+3.0", 0, 1), ("\N{MINUS SIGN}2.0", 1, 2)}
    plain = plots.plot_targets(environments.transpose("latent", "condition"))
    np.testing.assert_array_equal(plain.images[0].get_array(), ax.images[0].get_array())


def test_targets_of_many_environments_write_no_numbers(environments) -> None:
    many = environments.isel(condition=np.tile([0, 1, 2], 40))
    ax = plots.plot_targets(many.assign_coords(condition=[f"e{i}" for i in range(120)]))
    assert len(ax.texts) == 0
    assert ticks_of(ax.yaxis) == [f"e{i}" for i in range(0, 120, 2)]


def test_shifts_show_intervals_and_mark_targets(environments) -> None:
    ax = plots.plot_shifts(environments)
    found = points_of(ax)
    assert sorted(x for x, *_ in found) == sorted(SHIFT.ravel())
    for segment in lines_of(ax):
        assert np.ptp(segment[:, 0]) == pytest.approx(0.75)
        assert np.ptp(segment[:, 1]) == 0
    # Rows of an environment keep to its band; colours are those of latents.
    for x, y, color in found:
        row, column = np.argwhere(x == SHIFT)[0] if x else (0, None)
        assert abs(y - row) < 0.5
        if column is not None:
            assert color == GROUPS[column]
    hollow = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "white"]
    assert sorted(x for line in hollow for x in line.get_xdata()) == [0, 0, 0.1, 0.2]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["z_a", "z_b"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_shifts_say_what_their_intervals_are_conditional_on(environments) -> None:
    assert "conditional" not in plots.plot_shifts(environments).get_xlabel()
    noted = environments.assign_attrs(shift_intervals="conditional on the decoder; more", interval=0.9)
    ax = plots.plot_shifts(noted)
    assert ax.get_xlabel().endswith("conditional on the decoder")
    assert "90 % interval" in ax.get_title()


def test_shifts_of_chosen_and_of_largest_latents(environments) -> None:
    ax = plots.plot_shifts(environments, latents=["z_b"])
    assert sorted(x for x, *_ in points_of(ax)) == sorted(SHIFT[:, 1])
    wide = xr.concat([environments * size for size in range(12)], "latent")
    wide = wide.assign_coords(latent=[f"z_{k}" for k in range(24)])
    largest = plots.plot_shifts(wide.drop_vars("target_probability"))
    assert len(largest.get_legend().get_texts()) == len(GROUPS)
    assert max(x for x, *_ in points_of(largest)) == 33
    assert "14 smaller latents left out" in largest.get_title()


def test_latents_show_cells_and_means_of_environments(latents) -> None:
    ax = plots.plot_latents(latents)
    # z_c hardly differs between environments, so the first two are drawn.
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z_a", "z_b")
    drawn = ax.collections[0].get_offsets()
    values = latents["mean"].values[:, :2]
    np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], values[np.lexsort(values.T)])
    fill = dict(zip(map(tuple, drawn.tolist()), map(to_hex, ax.collections[0].get_facecolors()), strict=True))
    for value, code in zip(values, latents["environment"].values, strict=True):
        assert fill[tuple(value)] == GROUPS[code]
    means = [values[latents["environment"] == code].mean(0) for code in range(3)]
    np.testing.assert_allclose([point[:2] for point in points_of(ax)], means)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["control", "pma", "ly"]
    assert ax.get_aspect() == 1
    chosen = plots.plot_latents(latents, names=("z_c", "z_a"), labels=["x"] * 35)
    assert (chosen.get_xlabel(), chosen.get_ylabel()) == ("z_c", "z_a")
    assert [text.get_text() for text in chosen.get_legend().get_texts()] == ["x"]


def test_many_environments_share_grey_and_keep_their_order(latents) -> None:
    codes = np.arange(35) % 13
    names = [f"e{i}" for i in range(13)]
    many = latents.drop_vars(["condition", "environment"]).assign(environment=("cell", codes))
    ax = plots.plot_latents(many.assign_coords(condition=names))
    written = [text.get_text() for text in ax.get_legend().get_texts()]
    assert written == [*names[:10], "3 others"]
    assert OTHER not in [color for *_, color in points_of(ax)]


def test_gene_effects_put_clear_genes_first(effects) -> None:
    ax = plots.plot_gene_effects(effects, "drug", num_genes=3)
    # C has the largest effect, but its interval holds 0: it comes after A and B, before D.
    assert ticks_of(ax.yaxis) == ["C", "A", "B"]
    assert [color for *_, color in points_of(ax)] == ["#999999", POSITIVE, NEGATIVE]
    np.testing.assert_allclose(lines_of(ax)[:, :, 0], [[-2, 8], [0.3, 0.7], [-2.5, -1.5]])
    assert "log2 ratio, against control" in ax.get_xlabel()
    assert "2 of 4 intervals" in ax.get_xlabel()
    assert "drug" in ax.get_title()
    assert "80 % interval" in ax.get_title()
    assert ticks_of(plots.plot_gene_effects(effects, "drug", num_genes=2).yaxis) == ["A", "B"]


def test_gene_effects_need_only_their_environment_to_be_finite(effects) -> None:
    effects["effect"].values[0] = np.nan
    assert plots.plot_gene_effects(effects, "drug") is not None
    with pytest.raises(DataError, match="finite"):
        plots.plot_gene_effects(effects, "control")


def test_draws_on_given_axes(environments, latents, effects) -> None:
    for draw in (
        lambda ax: plots.plot_targets(environments, ax=ax),
        lambda ax: plots.plot_shifts(environments, ax=ax),
        lambda ax: plots.plot_latents(latents, ax=ax),
        lambda ax: plots.plot_gene_effects(effects, "drug", ax=ax),
    ):
        ax = plt.subplots()[1]
        assert draw(ax) is ax
        ax.figure.canvas.draw()


def test_refuses_what_it_cannot_draw(environments, latents, effects) -> None:
    with pytest.raises(DataError, match="target_probability"):
        plots.plot_targets(environments.drop_vars("target_probability"))
    with pytest.raises(DataError, match="finite"):
        plots.plot_shifts(environments.assign(shift=environments["shift"] * np.nan))
    with pytest.raises(DataError, match="z_x"):
        plots.plot_shifts(environments, latents=["z_x"])
    with pytest.raises(DataError, match="latents: found 11"):
        plots.plot_shifts(environments, latents=["z_a"] * 11)
    with pytest.raises(DataError, match="environment"):
        plots.plot_latents(latents.drop_vars("environment"))
    with pytest.raises(DataError, match="at least two"):
        plots.plot_latents(latents.isel(latent=[0]))
    with pytest.raises(DataError, match="labels"):
        plots.plot_latents(latents, labels=["x"])
    with pytest.raises(DataError, match="condition"):
        plots.plot_gene_effects(effects, "other")
    with pytest.raises(DataError, match="num_genes"):
        plots.plot_gene_effects(effects, "drug", num_genes=0)
