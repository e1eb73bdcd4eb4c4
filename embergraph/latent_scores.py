"""How well inferred latents match true ones: alignment, correlation, importance.

Scores of decoders and encoders (`decoder_scores`) and of targets and shifts (`target_scores`) are found here as well.

Latents of cells are arrays or DataArrays over (cell, latent). Every score allows more inferred latents than true ones,
and fewer. No score is ever NaN: latents that do not vary have correlation 0, and what else cannot be scored is stated
with each function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment
from scipy.special import entr
from scipy.stats import rankdata
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import LassoCV, LinearRegression
from sklearn.model_selection import train_test_split

from .decoder_scores import angle_test as angle_test
from .decoder_scores import column_disentanglement as column_disentanglement
from .decoder_scores import drift as drift
from .decoder_scores import encoder_disentanglement as encoder_disentanglement
from .decoder_scores import finite_matrix
from .models.parts.errors import DataError
from .target_scores import calibration_error as calibration_error
from .target_scores import coverage as coverage
from .target_scores import hoyer as hoyer
from .target_scores import moved_latents as moved_latents
from .target_scores import target_scores as target_scores

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Latents = Float[np.ndarray, "cell latent"] | xr.DataArray

Correlation = Literal["pearson", "spearman"]
Importance = Literal["boosting", "lasso"]


@dataclass(frozen=True)
class Alignment:
    """Which inferred latent stands for which true latent.

    Attributes
    ----------
    position
        For every true latent the position of its inferred latent, -1 where there is none.
    sign
        1 or -1, the sign of their correlation.
    correlation
        Their absolute correlation, 0 where there is none.
    """

    position: Int[np.ndarray, " true_latent"]
    sign: Float[np.ndarray, " true_latent"]
    correlation: Float[np.ndarray, " true_latent"]

    def take(self, values: Any, *, signed: bool) -> Float[np.ndarray, "*batch true_latent"]:
        """Return values of inferred latents in the order of the true ones; 0 where a true latent has none.

        Parameters
        ----------
        values
            The last axis are the inferred latents.
        signed
            Whether the values turn with the sign of a latent, as means and shifts do and probabilities do not.
        """
        chosen = np.asarray(values, dtype=np.float64)[..., self.position] * (self.position >= 0)
        return chosen * self.sign if signed else chosen

    def interval(
        self, lower: Any, upper: Any
    ) -> tuple[Float[np.ndarray, "*batch true_latent"], Float[np.ndarray, "*batch true_latent"]]:
        """Ends of intervals in the order and with the signs of the true latents, the lower end first."""
        ends = np.stack([self.take(end, signed=True) for end in (lower, upper)])
        return ends.min(0), ends.max(0)

    def rest(self, values: Any) -> Float[np.ndarray, "*batch latent"]:
        """Return values of the inferred latents that stand for no true latent."""
        found = np.asarray(values, dtype=np.float64)
        return np.delete(found, self.position[self.position >= 0], axis=-1)


def align(inferred: Latents, true: Latents, *, method: Correlation = "pearson") -> Alignment:
    """Match inferred with true latents so that the sum of their absolute correlations is largest.

    Signs do not count: a model cannot know them.

    Parameters
    ----------
    inferred, true
        Over the same cells in the same order, at least two.
    method
        ``"pearson"`` or ``"spearman"``.

    Returns
    -------
    Alignment
        One entry a true latent.

    Raises
    ------
    DataError
        If shapes do not match, values are not finite, or a true latent is constant.
    """
    if method not in get_args(Correlation):
        raise DataError(f"method: found {method!r}; wanted one of {', '.join(get_args(Correlation))}")
    found, actual = _paired(inferred, true)
    if method == "spearman":
        found, actual = rankdata(found, axis=0), rankdata(actual, axis=0)
    correlation = _standardized(found).T @ _standardized(actual) / len(actual)
    rows, columns = linear_sum_assignment(np.abs(correlation), maximize=True)
    position = np.full(actual.shape[1], -1)
    sign, size = np.ones(actual.shape[1]), np.zeros(actual.shape[1])
    position[columns] = rows
    matched = correlation[rows, columns]
    sign[columns], size[columns] = np.where(matched < 0, -1.0, 1.0), np.minimum(np.abs(matched), 1.0)
    return Alignment(position, sign, size)


def mcc(inferred: Latents, true: Latents, *, method: Correlation = "pearson") -> float:
    """Mean over true latents of the absolute correlation with the inferred latent that `align` gives them.

    Parameters and errors as in `align`.

    Returns
    -------
    float
        Between 0 and 1; a true latent without partner counts 0.
    """
    return float(align(inferred, true, method=method).correlation.mean())


def r2(inferred: Latents, true: Latents) -> float:
    """Share of the variance of true latents that a linear regression on all inferred latents explains.

    It says how much of the latent space is there, in whatever rotation. The regression is fitted and scored on the same
    cells, so give it many more cells than latents.

    Parameters and errors as in `align`.

    Returns
    -------
    float
        Between 0 and 1, the mean over true latents.
    """
    found, actual = _paired(inferred, true)
    left = actual - LinearRegression().fit(found, actual).predict(found)
    return float(np.clip(1 - left.var(0) / actual.var(0), 0, 1).mean())


def dci(inferred: Latents, true: Latents, *, method: Importance = "boosting", seed: int = 0) -> xr.Dataset:
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018).

    Every true latent is regressed on all inferred ones. With P_ij the importance of inferred latent i for true latent
    j, the disentanglement of i is 1 minus the entropy of row i of P, to base the number of true latents; the
    completeness of j is 1 minus the entropy of column j, to base the number of inferred latents. Their means weigh
    latents by their sums of importance. Boosting takes a few seconds for each true latent and 10 000 cells.

    Parameters
    ----------
    inferred, true
        As in `align`, at least 20 cells.
    method
        ``"boosting"``: gradient-boosted trees and their impurity importance. ``"lasso"``: absolute coefficients of
        standardised latents, penalty by cross-validation.
    seed
        Of the trees and of the split; a fifth of the cells is held out to score informativeness.

    Returns
    -------
    xr.Dataset
        ``disentanglement``, ``completeness`` and ``informativeness`` (held-out R2, mean over true latents, at least 0)
        and ``importance (latent, true_latent)``.

    Raises
    ------
    DataError
        As in `align`, or if `method` is unknown or cells are fewer than 20.
    """
    if method not in get_args(Importance):
        raise DataError(f"method: found {method!r}; wanted one of {', '.join(get_args(Importance))}")
    found, actual = _paired(inferred, true)
    if len(found) < 20:
        raise DataError(f"inferred: found {len(found)} cells; wanted at least 20")
    parts = train_test_split(_standardized(found), _standardized(actual), test_size=0.2, random_state=seed)
    columns, scores = [], []
    for k in range(actual.shape[1]):
        train, test = parts[2][:, k], parts[3][:, k]
        if method == "boosting":
            trees = GradientBoostingRegressor(random_state=seed).fit(parts[0], train)
            columns.append(trees.feature_importances_)
            left = test - trees.predict(parts[1])
        else:
            lasso = LassoCV(cv=5, random_state=seed).fit(parts[0], train)
            columns.append(np.abs(lasso.coef_))
            left = test - lasso.predict(parts[1])
        scores.append(max(0.0, 1 - np.mean(left**2) / (np.var(test) or 1.0)))
    importance = np.stack(columns, axis=1)
    return xr.Dataset(
        {
            "disentanglement": _concentration(importance),
            "completeness": _concentration(importance.T),
            "informativeness": float(np.mean(scores)),
            "importance": (("latent", "true_latent"), importance),
        }
    )


def _paired(
    inferred: Latents, true: Latents
) -> tuple[Float[np.ndarray, "cell latent"], Float[np.ndarray, "cell true_latent"]]:
    found, actual = finite_matrix("inferred", inferred, "cell"), finite_matrix("true", true, "cell")
    if len(found) != len(actual) or len(found) < 2:
        raise DataError(f"inferred, true: found {len(found)} and {len(actual)} cells; wanted the same, at least 2")
    if isinstance(inferred, xr.DataArray) and isinstance(true, xr.DataArray):
        named = "cell" in inferred.coords and "cell" in true.coords
        if named and not np.array_equal(inferred["cell"].values, true["cell"].values):
            raise DataError("inferred, true: found other names along cell; wanted the same cells in the same order")
    constant = np.flatnonzero(np.ptp(actual, axis=0) == 0)
    if constant.size:
        raise DataError(f"true: found the same value in all cells for latents {constant.tolist()}; wanted them to vary")
    return found, actual


def _standardized(values: Float[np.ndarray, "cell latent"]) -> Float[np.ndarray, "cell latent"]:
    """Mean 0 and variance 1; 0 where there is no variance but rounding."""
    centred = values - values.mean(0)
    spread = centred.std(0)
    varies = spread > 1e-12 * np.abs(values).max(0)
    return np.where(varies, centred / np.where(varies, spread, 1.0), 0.0)


def _concentration(importance: Float[np.ndarray, "row column"]) -> float:
    """1 minus the entropy of each row, to base the number of columns, weighted by the sums of rows."""
    weights = importance.sum(1)
    if not weights.any():
        return 0.0
    shares = importance / np.where(weights > 0, weights, 1.0)[:, None]
    columns = importance.shape[1]
    entropy = entr(shares).sum(1) / np.log(columns) if columns > 1 else np.zeros(len(shares))
    return float(np.average(1 - entropy, weights=weights))
