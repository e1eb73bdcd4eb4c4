"""A fitted NOTMAD: what it tells of networks and itself."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from ..inference import Fit, register
from ..inference.figures import Picture
from ..inference.inputs import DataLike, as_dataset
from ..inference.readings import check_level
from ._notmad_anndata import AnnDataOut
from ._notmad_causal import Interventions
from ._notmad_effects import CovariateEffects
from ._notmad_figures import network_figures
from ._notmad_map import ArchetypeMap
from ._notmad_networks import Networks
from ._notmad_readings import network_readings
from ._notmad_report import network_report


class NOTMADFit(CovariateEffects, ArchetypeMap, Interventions, AnnDataOut, Networks, Fit):
    """A fitted NOTMAD: a `Fit` that also tells networks of cells."""

    exchangeable = ("archetype",)

    def conditioned_log_density(self, data: DataLike, *, num_samples: int = 500, seed: int = 0) -> xr.DataArray:
        """Log density of each cell with its logits read from its own expression: how well it is described.

        Not a prediction: the expression that is scored has chosen the mixture. `log_density` is the held-out score,
        with logits from the covariates alone. Both agree for models without `mixture_scale`.

        Returns
        -------
        xr.DataArray
            log of the mean of p(X_i | eta_i, rest) over the guide's eta_i given C_i and X_i, (cell,).
        """
        found = self.posterior(data, num_samples, predictive=False, prior=False, seed=seed)["log_likelihood"]
        terms = found["expression"].stack(_draw=("chain", "draw")).transpose("_draw", "cell")
        density = logsumexp(terms.values, 0) - np.log(terms.sizes["_draw"])
        return terms.isel(_draw=0, drop=True).copy(data=density).rename("conditioned_log_density")

    def report(self, data: DataLike, test: DataLike | None = None, *, num_samples: int = 500) -> xr.Dataset:
        """`Fit.report`, with rows on orders, acyclicity and the mixing of networks."""
        table = super().report(data, test, num_samples=num_samples)
        return network_report(self, table, as_dataset(data if test is None else test))

    def readings(
        self, data: DataLike, *, num_samples: int = 200, level: float = 0.9, seed: int = 0
    ) -> dict[str, xr.Dataset]:
        """``network`` and ``edge`` of up to 25 cells, evenly spaced; see `Fit.readings`."""
        check_level(level)
        return network_readings(self, as_dataset(data, self.schema), num_samples, level=level, seed=seed)

    def figures(self, data: DataLike, *, num_samples: int = 200, seed: int = 0) -> list[Picture]:
        """The mean network, edges that differ between cells, archetypes, and cells between them; see `Fit.figures`."""
        return network_figures(self, as_dataset(data), num_samples, seed)


register(NOTMADFit)
