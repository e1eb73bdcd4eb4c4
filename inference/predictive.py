"""What a fit says of data that it has not seen, beyond densities of whole cells: replicates and single entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import xarray as xr

from . import entries, replicated
from .inputs import DataLike

if TYPE_CHECKING:
    from .fit import Fit


class Predictive:
    """The part of `Fit` that predictive checks and densities of entries are made of."""

    def replicated(
        self,
        data: DataLike,
        num_samples: int = 200,
        *,
        kind: replicated.Kind = "posterior",
        cells: replicated.Cells = "auto",
        seed: int = 0,
    ) -> replicated.Replicated:
        """Draw the observed variables anew, part by part, beside what was observed: the stuff of predictive checks.

        Parameters
        ----------
        data
            The training data, or held-out cells where `cells` is ``"new"``.
        num_samples
            Draws.
        kind
            ``"posterior"`` or ``"prior"``.
        cells
            ``"new"``: sites that belong to cells are drawn afresh from their prior, as in `predict`. ``"same"``: from
            the posterior of these very cells, as in `posterior`; the replicates then resemble the data by more than
            the model says of other cells. ``"auto"``: new ones where that can be done.
        seed
            Seed of the draws.

        Raises
        ------
        DataError
            If an option is unknown.
        SchemaError
            If a prior that is to be drawn from is flat, or no site of the model is scored on the data.
        """
        return replicated.replicated(cast("Fit", self), data, num_samples, kind=kind, cells=cells, seed=seed)

    def entry_log_density(self, data: DataLike, num_samples: int = 200, *, seed: int = 0) -> xr.Dataset:
        """Log density of every entry of held-out cells given the other entries of its cell, in nats.

        log p(x_ig | x_i without g, training data), posterior draws weighted by how likely they make the rest of the
        cell (see `EntryMeans`). Sites that belong to cells are drawn from their prior and weighted alike: with long
        latent vectors few draws count, which ``effective_draws`` tells.

        Parameters
        ----------
        data
            Held-out cells.
        num_samples
            Draws.
        seed
            Seed of the draws.

        Returns
        -------
        xr.Dataset
            ``log_density`` and ``effective_draws`` with the dims of the observed variable, NaN where a mask hides an
            entry; attribute ``fewest_draws``, the smallest of these numbers. Several observed sites: ``<site>.<name>``.

        Raises
        ------
        SchemaError
            If the law of an entry given the others is not known for a site (see `models.parts.entries`), or as in
            `log_density`.
        NumericalError
            If a quadrature does not settle.
        """
        return entries.entry_log_density(cast("Fit", self), data, num_samples, seed=seed)
