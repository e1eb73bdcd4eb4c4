"""Pictures of a fitted NOTMAD show the numbers that they are given."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from notmad_use_cases import about_cells, from_prior

import embergraph as eg
from embergraph import plots
from embergraph._drawing import NEGATIVE, POSITIVE


@pytest.fixture(autouse=True)
def _own_figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = matplotlib.get_backend()
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("a picture was shown"))
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.fixture(scope="module")
def fit() -> eg.NOTMADFit:
    return from_prior()


@pytest.fixture(scope="module")
def effects(fit: eg.NOTMADFit) -> xr.Dataset:
    return fit.covariate_effects(7, edges=[("Raf", "Mek"), ("Erk", "Akt")])


def test_bands_of_a_number_and_bars_of_a_factor(effects: xr.Dataset) -> None:
    time, stress = plots.plot_covariate_effects(effects)
    time.figure.canvas.draw()
    number = effects.isel(point=slice(0, 7))
    lines = [line for line in time.get_lines() if line.get_label() in effects["edge"].values]
    for k, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xdata(), number["value"])
        np.testing.assert_array_equal(line.get_ydata(), number["effect"][:, k])
    band = time.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == number["effect_upper"][:, 0].max()
    assert band[:, 1].min() == number["effect_lower"][:, 0].min()
    assert [label.get_text() for label in stress.get_xticklabels()] == ["heat", "none", "salt"]
    points = [line for line in stress.get_lines() if line.get_label() == "Raf → Mek"]
    np.testing.assert_array_equal(points[0].get_ydata(), effects["effect"][7:, 0])
    bars = stress.collections[0].get_segments()
    np.testing.assert_array_equal(
        [bar[:, 1] for bar in bars], effects[["effect_lower", "effect_upper"]].to_array()[:, 7:, 0].T
    )
    assert time.get_xlabel() == "time"
    assert "90%" in time.figure.get_suptitle()


def test_other_quantities_and_single_covariates(effects: xr.Dataset) -> None:
    (only,) = plots.plot_covariate_effects(effects, show="mixture", covariates=["stress"])
    assert only.get_ylabel() == "weight of the archetype"
    assert len(plots.plot_covariate_effects(effects.drop_vars(["effect", "effect_lower"]))) == 2
    for wrong, words in (({"show": "colour"}, "show: found 'colour'"), ({"covariates": ["age"]}, "'age'")):
        with pytest.raises(eg.DataError, match=words):
            plots.plot_covariate_effects(effects, **wrong)


def test_map_shows_cells_archetypes_and_half_of_the_posterior(fit: eg.NOTMADFit) -> None:
    frame = about_cells(30, 1)
    found = fit.archetype_map(frame)
    ax = plots.plot_archetype_map(found, color=frame["stress"].values, uncertainty=5)
    ax.figure.canvas.draw()
    drawn = {tuple(point) for point in ax.collections[0].get_offsets()}
    assert drawn == {tuple(point) for point in found["position"].values}
    corners = {text.get_text(): text.xy for text in ax.texts}
    np.testing.assert_array_equal([corners[str(k)] for k in range(3)], found["archetype_position"])
    assert len(ax.patches) == 5
    first, covariance = ax.patches[0], found["covariance"].values[0]
    assert (first.width / 2.354) ** 2 + (first.height / 2.354) ** 2 == pytest.approx(np.trace(covariance))
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"heat", "none", "salt"}
    assert ax.get_aspect() == 1


def test_half_of_the_draws_lie_in_an_ellipse(fit: eg.NOTMADFit) -> None:
    rng = np.random.default_rng(0)
    covariance = np.array([[2.0, 0.7], [0.7, 0.5]])
    found = fit.archetype_map(about_cells(1, 1)).assign(covariance=(("cell", "axis", "other_axis"), covariance[None]))
    patch = plots.plot_archetype_map(found).patches[0]
    draws = rng.multivariate_normal(found["position"].values[0], covariance, size=4000)
    turned = (draws - patch.center) @ np.linalg.eigh(covariance)[1]
    inside = ((2 * turned / [patch.width, patch.height]) ** 2).sum(1) < 1
    assert inside.mean() == pytest.approx(0.5, abs=0.04)


def test_map_by_a_number_by_nothing_and_on_a_polygon(fit: eg.NOTMADFit) -> None:
    frame = about_cells(12, 1)
    found = fit.archetype_map(frame, layout="polygon")
    by_number = plots.plot_archetype_map(found, color=xr.DataArray(frame["time"].values, dims="cell", name="time"))
    order = np.argsort([tuple(point) for point in by_number.collections[0].get_offsets()], axis=0)[:, 0]
    values = by_number.collections[0].get_array()[order]
    np.testing.assert_array_equal(values, frame["time"].values[np.argsort(found["position"].values[:, 0])])
    plain = plots.plot_archetype_map(found)
    assert all("mostly archetype" in text.get_text() for text in plain.get_legend().get_texts())
    for count in (1, 2):
        few = from_prior(num_archetypes=count)
        plots.plot_archetype_map(few.archetype_map(frame)).figure.canvas.draw()
    with pytest.raises(eg.DataError, match="color: found shape"):
        plots.plot_archetype_map(found, color=["a"])


def test_intervention_shows_free_genes_by_size(fit: eg.NOTMADFit) -> None:
    frame = about_cells(4, 2)
    found = fit.do({"Raf": 3.0}, frame, average=True)
    found["difference"][:] = [3.0, 0.5, -2.0, 0.1]
    found["difference_lower"][:] = [3.0, 0.2, -3.0, -1.0]
    found["difference_upper"][:] = [3.0, 0.8, -1.0, 1.0]
    ax = plots.plot_intervention(found)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Mek", "Akt", "Erk"]
    colors = [to_hex(line.get_color()) for line in ax.get_lines()[1:]]
    assert colors == [POSITIVE, "#999999", NEGATIVE]
    assert ax.get_title() == "do(Raf = 3): mean and 90% interval"
    with pytest.raises(eg.DataError, match="cell: found None"):
        plots.plot_intervention(fit.do({"Raf": 3.0}, frame))
    one = plots.plot_intervention(fit.do({"Raf": 3.0}, frame), cell="cell2", num_genes=2)
    assert len(one.get_yticklabels()) == 2
