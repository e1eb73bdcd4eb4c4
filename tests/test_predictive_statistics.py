"""Statistics of tables against SciPy and pandas, and the rank law of p values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from embergraph._replicated_ranks import compared, p_of_all
from embergraph.predictive_statistics import STATISTICS, gene_correlation, gene_kurtosis, tail_dependence


def test_p_values_are_ranks_and_ties_count_half() -> None:
    replicates = np.arange(9.0)[:, None] * [1.0, 1.0, 0.0, 1.0]
    found = compared(np.array([9.0, 4.0, 0.0, -1.0]), replicates, 0.9)
    # As large or larger among the ten: itself by half, so .5/10; in the middle 5.5 - .5 of ten, and one tie by half.
    np.testing.assert_allclose(found.p, [0.1, 1.0, 1.0, 0.1])
    np.testing.assert_allclose(found.mean, [4.0, 4.0, 0.0, 4.0])
    wanted = np.quantile(np.arange(9.0), [0.05, 0.95], method="weibull")
    np.testing.assert_allclose([found.lower[0], found.upper[0]], wanted)
    assert found.share == 0.0, "p at .1 is not below .1"
    assert found.worst in (0, 3)
    same = compared(np.ones(3), np.ones((9, 3)), 0.9)
    assert not same.varies
    with_nan = compared(np.array([np.nan, 20.0]), np.stack([np.arange(9.0)] * 2, axis=1), 0.9)
    assert np.isnan(with_nan.p[0])
    assert with_nan.p_overall == pytest.approx(0.05)


@pytest.mark.parametrize("law", ["normal", "skew", "counts"])
def test_overall_p_values_are_uniform(law: str) -> None:
    """Of exchangeable rows, whatever the law of the statistics and however they depend on each other."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        common = random.normal(size=(40, 1))
        values = random.normal(size=(40, 12)) + common
        values = values if law == "normal" else np.exp(2 * values) if law == "skew" else np.round(values)
        first, second = (compared(part[0], part[1:], 0.8) for part in (values[:, :6], values[:, 6:]))
        found.append([first.p_overall, first.share_p, p_of_all([first.extremes, second.extremes])])
    overall, share, of_all = np.array(found).T
    assert stats.kstest(overall, "uniform").pvalue > 0.01
    assert stats.kstest(of_all, "uniform").pvalue > 0.01
    assert 0.02 < (share < 0.1).mean() < 0.16


def test_statistics_of_tables() -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(60, 4)) @ random.normal(size=(4, 4))
    upper = np.triu_indices(4, 1)
    np.testing.assert_allclose(gene_correlation(table), np.corrcoef(table.T)[upper])
    np.testing.assert_allclose(gene_kurtosis(table), stats.kurtosis(table))
    holes = np.where(random.random(table.shape) < 0.2, np.nan, table)
    np.testing.assert_allclose(gene_correlation(holes), pd.DataFrame(holes).corr().values[upper])
    np.testing.assert_allclose(gene_kurtosis(holes), stats.kurtosis(holes, nan_policy="omit"))
    for name, wanted in (("gene_mean", np.nanmean), ("maximum", np.nanmax)):
        np.testing.assert_allclose(STATISTICS[name](holes), wanted(holes, axis=0))
    np.testing.assert_allclose(STATISTICS["gene_variance"](holes), np.nanvar(holes, axis=0, ddof=1))
    np.testing.assert_allclose(STATISTICS["cell_total"](holes), np.nansum(holes, axis=1))
    zeros = np.array([[0.0, 1.0], [0.0, np.nan], [2.0, 0.0], [3.0, 5.0]])
    np.testing.assert_allclose(STATISTICS["zero_fraction"](zeros), [0.5, 1 / 3])
    constant = np.column_stack([table[:, 0], np.ones(60)])
    assert gene_correlation(constant) == [0.0]
    assert gene_kurtosis(constant)[1] == 0.0
    ranks = np.arange(100.0)
    assert tail_dependence(np.column_stack([ranks, ranks, -ranks])).tolist() == [1.0, 0.0, 0.0]
    assert tail_dependence(np.column_stack([ranks, np.roll(ranks, 2)])) == pytest.approx([0.6])
