"""Covariates of new cells as users have them: Datasets, data frames with text, arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..encoding import encode_like
from ..inference import Fit
from ..inference.inputs import as_dataset
from ..models.notmad import NOTMAD
from ..models.parts.errors import DataError
from ..validation import check_unique
from ._notmad_labels import aligned
from ._notmad_stream import Values

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

Covariates = Any
"""A Dataset with ``covariates``, a DataFrame of them (text for factors, or encoded), or an array (cell, covariate)."""


class ReadsCovariates(Fit):
    """What all questions to a `NOTMADFit` begin with."""

    model: NOTMAD

    @property
    def covariate_names(self) -> list[str]:
        """Names of the encoded covariates, ``column`` or ``column[level]``."""
        count = self.template.variables["covariates"][1][1]
        return [str(name) for name in self.template.coords.get("covariate", range(count))]

    @property
    def gene_names(self) -> Shaped[np.ndarray, " gene"]:
        """Names of the genes."""
        return np.asarray(self.template.coords.get("gene", range(self.model.num_genes)))

    def encode(self, table: Any) -> xr.Dataset:
        """Covariates of new cells in the columns of the fit.

        Parameters
        ----------
        table
            Data frame, one row per cell, with a column for every covariate that the training data were made from:
            numbers, or text or categories for a factor. Levels need not all occur. Further columns are not looked at.

        Returns
        -------
        xr.Dataset
            ``covariates (cell, covariate)``, for `networks` and all other questions; they encode data frames
            themselves.

        Raises
        ------
        DataError
            If a column is missing or of another kind, a factor has an unknown level, or a value is missing.
        """
        cells = np.asarray(table.index, dtype=str)
        check_unique("cell", cells)
        names = self.covariate_names if "covariate" in self.template.coords else [str(name) for name in table.columns]
        values = encode_like(table.rename(columns=str), names, cells)
        return xr.Dataset({"covariates": (("cell", "covariate"), values)}, {"cell": cells, "covariate": names})

    def _covariates(self, given: Covariates) -> tuple[Float[np.ndarray, "cell covariate"], np.ndarray]:
        """Checked covariates and the names of their cells."""
        names = self.template.coords.get("covariate")
        if hasattr(given, "columns") and hasattr(given, "to_numpy"):
            given = self.encode(given)
        elif not isinstance(given, xr.Dataset):
            given = as_dataset({"covariates": (("cell", "covariate"), np.asarray(given, dtype=float))})
        if "covariates" not in given or given["covariates"].dims != ("cell", "covariate"):
            raise DataError(f"covariates: found {dict(given.sizes)}; wanted a variable covariates (cell, covariate)")
        table = given["covariates"]
        if table.sizes["cell"] == 0:
            raise DataError("covariates: found no cells; wanted at least one")
        genes = self.template.coords.get("gene")
        if genes and "gene" in given.coords and given["gene"].values.tolist() != genes:
            raise DataError(f"gene: found {given['gene'].values.tolist()[:5]}...; wanted {genes[:5]}... as in the fit")
        wanted = self.template.variables["covariates"][1][1]
        if table.sizes["covariate"] != wanted:
            raise DataError(f"covariates: found {table.sizes['covariate']} columns; wanted {wanted}: {names}")
        if names and "covariate" in table.coords and list(table["covariate"].values) != names:
            raise DataError(f"covariates: found columns {table['covariate'].values.tolist()}; wanted {names}")
        if not np.isfinite(table.values).all():
            raise DataError("covariates: found NaN or infinite values; wanted finite numbers")
        cells = table["cell"].values if "cell" in table.coords else np.arange(table.sizes["cell"])
        return np.asarray(table.values, dtype=float), cells

    def _outside(self, table: Float[np.ndarray, "cell covariate"]) -> int:
        """How many cells have a covariate beyond the training cells', or a level that none of them has."""
        low, high = (bound.cpu().numpy() for bound in (self.model.encoder.lowest, self.model.encoder.highest))
        return int(((table < low - 1e-6) | (table > high + 1e-6)).any(1).sum())

    def _values(self, num_samples: int | None, seed: int) -> Values:
        """Draws of the sites that networks are made of, archetypes under the same label in all chains.

        One draw if all are equal, as those of a point estimate.
        """
        values = self.global_draws(num_samples, seed)
        if all(bool((value == value[:1]).all()) for value in values.values()):
            return {name: value[:1] for name, value in values.items()}
        return aligned(self.model, values, 1 if self.draws is None else self.stored.shape[0])


def check_interval(interval: float | None) -> None:
    """Refuse a mass that is none.

    Raises
    ------
    DataError
        If it is not between 0 and 1.
    """
    if interval is not None and not 0 < interval < 1:
        raise DataError(f"interval: found {interval}; wanted a number between 0 and 1")


def check_threshold(edge_threshold: float | None) -> None:
    """Refuse thresholds of effects that are negative or no number.

    Raises
    ------
    DataError
        Naming the option.
    """
    if edge_threshold is not None and not 0 <= edge_threshold < float("inf"):
        raise DataError(f"edge_threshold: found {edge_threshold}; wanted a number of at least 0")


def check_scale(scale: str) -> None:
    """Refuse an unknown scale.

    Raises
    ------
    DataError
        If it is neither of the two.
    """
    if scale not in ("fitted", "original"):
        raise DataError(f"scale: found {scale!r}; wanted 'fitted' or 'original'")
