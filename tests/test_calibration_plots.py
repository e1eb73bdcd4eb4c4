"""Pictures of a calibration show its numbers."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PathCollection

import embergraph as eg
from embergraph import plots
from embergraph.models.parts.errors import DataError


@pytest.fixture(autouse=True)
def _own_figures() -> Iterator[None]:
    before = matplotlib.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.fixture(scope="module")
def result() -> xr.Dataset:
    def simulate(seed: int) -> xr.Dataset:
        return xr.Dataset({"true_mean": ("gene", np.random.default_rng(seed).normal(size=3))})

    def readings(fit: None, data: xr.Dataset, seed: int) -> dict[str, xr.Dataset]:
        draws = np.random.default_rng(seed).normal(size=(99, 3))
        p = np.random.default_rng(seed).uniform(size=3)
        return {
            "draws": xr.Dataset({"draws": (("draw", "gene"), draws), "truth": data["true_mean"]}),
            "sign": xr.Dataset({"probability": ("gene", p), "truth": data["true_mean"] > 0}),
        }

    options = {"fit": lambda data: None, "simulate": simulate, "readings": readings, "num_replicates": 30}
    return eg.calibrate(None, None, progress=False, **options)  # type: ignore[arg-type]


def test_bars_are_frequencies_of_ranks(result: xr.Dataset) -> None:
    ax = plots.plot_rank_histogram(result)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, result["rank_histogram"].sel(reading="draws"))
    assert np.mean(heights) == pytest.approx(1.0)
    assert ax.get_title() == f"draws: {result['verdict'].sel(reading='draws').item()}"
    assert ax.get_xlabel()


def test_the_curve_and_its_band(result: xr.Dataset) -> None:
    ax = plt.subplots()[1]
    assert plots.plot_rank_ecdf(result, "draws", ax=ax) is ax
    np.testing.assert_allclose(ax.lines[0].get_ydata(), result["ecdf_difference"].sel(reading="draws"))
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(float(result["ecdf_upper"].sel(reading="draws").max()))


def test_points_are_observed_shares_at_stated_probabilities(result: xr.Dataset) -> None:
    ax = plots.plot_stated_probabilities(result)
    points = next(c for c in ax.collections if isinstance(c, PathCollection)).get_offsets()
    row = result.sel(reading="sign")
    filled = (row["bin_count"] > 0).values
    np.testing.assert_allclose(points, np.stack([row["stated"], row["observed"]], 1)[filled])
    numbers = {text.get_text() for text in ax.texts}
    assert numbers == {f"{n:.0f}" for n in row["bin_count"].values if 0 < n < 20}


def test_readings_without_what_is_drawn_are_refused(result: xr.Dataset) -> None:
    with pytest.raises(DataError, match="reading: found 'sign'; wanted one that has what is drawn here"):
        plots.plot_rank_histogram(result, "sign")
    with pytest.raises(DataError, match="wanted the Dataset of calibrate"):
        plots.plot_rank_ecdf(xr.Dataset())
