"""Parts of a calibration against known answers: ranks, bands, coverage, probabilities; levels are simulated."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from embergraph._calibration.coverage import coverage
from embergraph._calibration.rank_tests import POINTS, flipped_errors, holm, rank_band, stated_p_value
from embergraph._calibration.tally import BINS, NUM_BINS, from_arrays, randomised_ranks, tally, to_arrays
from embergraph.models.parts.errors import NumericalError


def counts_of(u: np.ndarray) -> np.ndarray:
    """Ranks of shape (replicate, entry) counted by bin."""
    places = np.minimum(NUM_BINS * u, NUM_BINS - 1).astype(int)
    return np.stack([np.bincount(row, minlength=NUM_BINS) for row in places]).astype(float)


def dependent(rng: np.random.Generator, num: int, entries: int, rho: float) -> np.ndarray:
    """Uniform numbers whose entries are correlated within a replicate."""
    z = np.sqrt(rho) * rng.standard_normal((num, 1)) + np.sqrt(1 - rho) * rng.standard_normal((num, entries))
    return stats.norm.cdf(z)


def test_ranks_by_hand() -> None:
    rng = np.random.default_rng(0)
    draws = np.repeat(np.array([[0.0], [0.0], [1.0]]), 20_000, axis=1)
    places = 4 * randomised_ranks(draws, np.zeros(20_000), rng)
    assert places.max() < 3  # below the 1, anywhere among the two zeros
    np.testing.assert_allclose(np.bincount(places.astype(int)) / 20_000, 1 / 3, atol=0.02)
    assert (np.floor(4 * randomised_ranks(draws, np.full(20_000, 0.5), rng)) == 2).all()


def test_ranks_are_uniform_where_truth_and_draws_are_often_zero() -> None:
    rng = np.random.default_rng(1)
    num = 30_000
    values = np.where(rng.random((20, num)) < 0.97, 0.0, rng.normal(size=(20, num)))
    reading = xr.Dataset({"draws": (("draw", "entry"), values[1:]), "truth": ("entry", values[0])})
    found = tally("spiky", reading, rng)
    certain = (values == 0).all(0)
    assert found.certain == certain.sum() > 0.4 * num
    assert found.ranks.sum() == num - certain.sum()
    assert stats.chisquare(found.ranks).pvalue > 0.01
    reading["truth"] = reading["truth"].where(rng.random(num) < 0.95, 1.0)  # not 0 more often than the draws think
    assert stats.chisquare(tally("spiky", reading, rng).ranks).pvalue < 1e-6


def test_a_tally_by_hand() -> None:
    reading = xr.Dataset(
        {
            "draws": (("draw", "entry"), np.arange(99.0)[:, None] + np.zeros(4)),
            "lower": ("entry", [0.0, 0.0, 0.0, 0.0]),
            "upper": ("entry", [9.0, 9.0, 9.0, 9.0]),
            "probability": ("entry", [0.3, 0.99, 1.0, 0.0]),
            "truth": ("entry", [5.5, 50.5, np.nan, 0.0]),
        },
        attrs={"meaning": "numbers", "level": 0.9},
    )
    found = tally("numbers", reading, np.random.default_rng(0))
    assert np.flatnonzero(found.ranks)[1:].tolist() == [6, 51]
    assert np.flatnonzero(found.ranks)[0] in (0, 1)  # equal to the smallest draw
    assert found.inside.tolist() == [2, 3]
    filled = np.flatnonzero(found.stated[:, 0])
    assert [BINS[i] for i in filled] == [0.0, 0.2, 0.99]
    np.testing.assert_allclose(found.stated[filled], [[1, 0.0, 0], [1, 0.3, 1], [1, 0.99, 1]])
    np.testing.assert_allclose(found.moments[:2], [0.7**2 + 0.01**2, 0.7 + 0.01])
    again = from_arrays(to_arrays({"a:b": found}))["a:b"]
    assert (again.meaning, again.level, again.certain) == ("numbers", 0.9, 0.0)
    np.testing.assert_array_equal(again.ranks, found.ranks)
    reading["lower"][0] = np.nan
    with pytest.raises(NumericalError, match=r"'numbers': lower: found 1 values"):
        tally("numbers", reading, np.random.default_rng(0))


def test_the_band_of_single_numbers_holds_its_level() -> None:
    rng = np.random.default_rng(2)
    found = [rank_band(counts_of(rng.random((60, 1)))) for _ in range(400)]
    outside = np.mean([((b.difference < b.lower - 1e-9) | (b.difference > b.upper + 1e-9)).any() for b in found])
    assert 0.02 < outside < 0.085  # standard error 0.011
    assert np.mean([b.p_value < 0.05 for b in found]) == pytest.approx(outside, abs=0.01)
    narrow = stats.norm.cdf(1.4 * rng.standard_normal((60, 1)))
    assert (
        np.mean(
            [rank_band(counts_of(stats.norm.cdf(1.6 * rng.standard_normal((60, 1))))).p_value < 0.05 for _ in range(50)]
        )
        > 0.7
    )
    band = rank_band(counts_of(narrow))
    assert band.difference == pytest.approx(np.array([(narrow < z).mean() for z in POINTS]) - POINTS)


@pytest.mark.parametrize(("entries", "rho"), [(30, 0.0), (30, 0.95), (7, 0.5)])
def test_entries_that_depend_on_each_other_do_not_cry_wolf(entries: int, rho: float) -> None:
    rng = np.random.default_rng(3)
    p_values = [rank_band(counts_of(dependent(rng, 40, entries, rho))).p_value for _ in range(150)]
    assert np.mean(np.array(p_values) < 0.05) < 0.1  # standard error 0.018
    pooled = [stats.kstest(dependent(rng, 40, entries, rho).ravel(), "uniform").pvalue < 0.05 for _ in range(250)]
    if rho > 0:
        assert np.mean(pooled) > 0.15, "the naive test, which takes entries for independent, must fail here"
    wrong = [stats.norm.cdf(2.0 * stats.norm.ppf(dependent(rng, 40, entries, rho))) for _ in range(30)]
    assert np.mean([rank_band(counts_of(u)).p_value < 0.05 for u in wrong]) > 0.7


def test_errors_of_coverage_take_the_replicate_as_the_unit() -> None:
    hits = (np.arange(50) % 10 > 0).astype(float)  # 45 of 50
    single = coverage(hits, np.ones(50), 0.9)
    assert single.share == pytest.approx(0.9)
    assert single.error == pytest.approx(np.sqrt(0.9 * 0.1 / 49))
    assert single.p_value == pytest.approx(1.0)
    repeated = coverage(40 * hits, np.full(50, 40.0), 0.9)
    assert repeated.error == pytest.approx(single.error)
    assert repeated.high - repeated.low > 0.9 * (single.high - single.low)
    spread = coverage(np.full(50, 36.0), np.full(50, 40.0), 0.9)  # the same share in all: as precise as can be
    assert spread.high - spread.low < 0.03


def test_coverage_without_a_miss_is_not_certain() -> None:
    found = coverage(np.full(20, 50.0), np.full(20, 50.0), 0.9)
    assert found.high == 1.0
    assert found.low < 0.9  # all entries of a replicate may be one: 0.9^20 = 0.12
    assert found.p_value > 0.02
    assert coverage(np.full(80, 1.0), np.ones(80), 0.9).p_value < 0.01


def test_coverage_intervals_hold() -> None:
    rng = np.random.default_rng(4)
    for entries, rho in ((1, 0.0), (30, 0.0), (30, 0.9)):
        found = []
        for _ in range(120):
            inside = np.abs(dependent(rng, 40, entries, rho) - 0.5) < 0.45
            found.append(coverage(inside.sum(1).astype(float), np.full(40, float(entries)), 0.9))
        assert np.mean([c.low <= 0.9 <= c.high for c in found]) > 0.88
        assert np.mean([c.p_value < 0.05 for c in found]) < 0.11


def test_holm_by_hand() -> None:
    found = holm(np.array([0.01, np.nan, 0.04, 0.03]))
    np.testing.assert_allclose(found, [0.03, np.nan, 0.06, 0.06])


def stated_of(rng: np.random.Generator, num: int, sure: float, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of 40 statements a replicate; true ones by a latent that `rho` of the entries share."""
    tallies = []
    for _ in range(num):
        p = rng.beta(0.5, 1.0, 40)
        true = dependent(rng, 1, 40, rho)[0] < p
        told = 1 / (1 + np.exp(-sure * np.log(p / (1 - p))))
        reading = xr.Dataset({"probability": ("entry", told), "truth": ("entry", true)})
        tallies.append(tally("edge", reading, rng))
    return np.stack([t.stated for t in tallies]), np.stack([t.moments for t in tallies])


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_probabilities_that_are_right_pass_and_bold_ones_do_not(rho: float) -> None:
    rng = np.random.default_rng(5)
    right = [stated_p_value(*stated_of(rng, 30, 1.0, rho)) < 0.05 for _ in range(60)]
    assert np.mean(right) < 0.13  # standard error 0.028
    assert np.mean([stated_p_value(*stated_of(rng, 30, 2.0, rho)) < 0.05 for _ in range(12)]) > 0.7
    error, error_se, chance = flipped_errors(stated_of(rng, 200, 1.0, rho)[0])
    assert error < chance + 4 * error_se
