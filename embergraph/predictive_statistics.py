"""Named statistics of data that predictive checks compare: one gene, one pair of genes or one cell at a time.

They see a table of rows (cells) and columns (genes); entries that were not observed are NaN and do not count. For a
user's own model "gene" is the last dim of the observed variable, or its only column.

| name | by | what it catches |
|---|---|---|
| `gene_mean` | gene | a wrong location or library size |
| `gene_variance` | gene | too much or too little noise, overdispersed counts |
| `zero_fraction` | gene | drop-out beyond the law of the counts |
| `gene_kurtosis` | gene | heavy tails: excess of the fourth moment |
| `maximum` | gene | single outlying values |
| `gene_correlation` | pair of genes | dependence that the model lacks, or invents |
| `tail_dependence` | pair of genes | genes that are extreme in the same cells |
| `cell_total` | cell | cells that are larger or smaller than the model knows |

`tail_dependence` is the share of the cells in which both genes exceed their own 95 % quantile, out of those in which
the first one does, made symmetric: the empirical chi(u) = P(V > u | U > u) at u = .95 of Coles, Heffernan and Tawn
(1999, Extremes 2, 339-365). It is .05 for independent genes and tends to 0 with u for any correlated Normal pair.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

    Table = Float[np.ndarray, "row column"]

By = Literal["column", "pair", "row"]
TAIL = 0.95


@dataclass(frozen=True)
class Statistic:
    """A statistic of a table, one number a column, a pair of columns or a row.

    Attributes
    ----------
    compute
        From the table to the numbers; of pairs in the order of ``numpy.triu_indices(columns, 1)``.
    by
        What its numbers belong to.
    meaning
        One line.
    least_rows, least_columns
        Fewer rows or columns than that have no such statistic.
    """

    compute: Callable[[Table], Float[np.ndarray, " entry"]]
    by: By
    meaning: str
    least_rows: int = 1
    least_columns: int = 1

    def __call__(self, table: Table) -> Float[np.ndarray, " entry"]:
        """Numbers of a table."""
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.filterwarnings("ignore", category=RuntimeWarning)  # columns without observed entries: NaN
            return self.compute(table)


def gene_mean(table: Table) -> Float[np.ndarray, " column"]:
    """Mean over cells."""
    return _mean(table)


def gene_variance(table: Table) -> Float[np.ndarray, " column"]:
    """Variance over cells, unbiased."""
    return np.var(table, axis=0, ddof=1) if _complete(table) else np.nanvar(table, axis=0, ddof=1)


def zero_fraction(table: Table) -> Float[np.ndarray, " column"]:
    """Share of exact zeros among the observed entries."""
    zeros = np.count_nonzero(table == 0, axis=0)
    return zeros / (len(table) if _complete(table) else (~np.isnan(table)).sum(axis=0))


def gene_kurtosis(table: Table) -> Float[np.ndarray, " column"]:
    """Excess kurtosis over cells; 0 for a Normal law, and for a constant gene."""
    squares = table - _mean(table)
    np.square(squares, out=squares)
    variance = _mean(squares)
    constant = variance <= _rounding(table)
    np.square(squares, out=squares)
    return np.where(constant, 0.0, _mean(squares) / np.where(constant, 1.0, variance) ** 2 - 3)


def maximum(table: Table) -> Float[np.ndarray, " column"]:
    """Largest value."""
    return np.fmax.reduce(table, axis=0)


def gene_correlation(table: Table) -> Float[np.ndarray, " pair"]:
    """Correlation over the cells in which both genes are observed; 0 where one is constant."""
    seen = ~np.isnan(table)
    rows, columns = np.triu_indices(table.shape[1], 1)
    if seen.all():
        centred = table - table.mean(axis=0)
        length = np.sqrt((centred**2).sum(axis=0))
        constant = length**2 <= len(table) * _rounding(table)
        scaled = centred / np.where(constant, 1.0, length)
        return np.where(constant, 0.0, 1.0)[rows] * (scaled.T @ scaled)[rows, columns] * ~constant[columns]
    x, both = np.where(seen, table - np.nanmean(table, axis=0), 0.0), seen.astype(float)
    count, product = both.T @ both, x.T @ x
    mean, square = x.T @ both / count, (x**2).T @ both / count  # of the first gene where the second one is seen
    variance = square - mean**2
    flat = variance <= _rounding(table)[:, None]
    sizes = np.sqrt(np.where(flat, 1.0, variance) * np.where(flat, 1.0, variance).T)
    return np.where(flat | flat.T, 0.0, (product / count - mean * mean.T) / sizes)[rows, columns]


def tail_dependence(table: Table) -> Float[np.ndarray, " pair"]:
    """Empirical chi(.95): how often two genes exceed their own 95 % quantiles in the same cell."""
    quantile = np.quantile if _complete(table) else np.nanquantile
    above = (table > quantile(table, TAIL, axis=0)).astype(float)
    both, single = above.T @ above, above.sum(axis=0)
    wanted = np.sqrt(single[:, None] * single)
    return np.where(wanted > 0, both / np.where(wanted > 0, wanted, 1.0), 0.0)[np.triu_indices(table.shape[1], 1)]


def cell_total(table: Table) -> Float[np.ndarray, " row"]:
    """Sum over the observed genes of a cell."""
    return table.sum(axis=1) if _complete(table) else np.nansum(table, axis=1)


def _rounding(table: Table) -> Float[np.ndarray, " column"]:
    """Variances up to which a column counts as constant."""
    return (1e-7 * np.maximum(np.abs(np.fmax.reduce(table, axis=0)), np.abs(np.fmin.reduce(table, axis=0)))) ** 2


def _complete(table: Table) -> bool:
    """Whether nothing is hidden; sums that skip NaN take several times as long."""
    return not np.isnan(table.sum())


def _mean(table: Table) -> Float[np.ndarray, " column"]:
    return table.mean(axis=0) if _complete(table) else np.nanmean(table, axis=0)


STATISTICS: dict[str, Statistic] = {
    "gene_mean": Statistic(gene_mean, "column", "mean of a gene over cells"),
    "gene_variance": Statistic(gene_variance, "column", "variance of a gene over cells", 2),
    "zero_fraction": Statistic(zero_fraction, "column", "share of exact zeros of a gene"),
    "gene_kurtosis": Statistic(gene_kurtosis, "column", "excess kurtosis of a gene over cells", 4),
    "maximum": Statistic(maximum, "column", "largest value of a gene", 2),
    "gene_correlation": Statistic(gene_correlation, "pair", "correlation of two genes over cells", 3, 2),
    "tail_dependence": Statistic(
        tail_dependence, "pair", "how often two genes exceed their 95 % quantiles in the same cell", 20, 2
    ),
    "cell_total": Statistic(cell_total, "row", "sum over the genes of a cell", 1, 2),
}
"""The statistics of the library by name."""
