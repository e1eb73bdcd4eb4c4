"""Entries held out: hidden at random before a fit, scored after it.

Hiding entries is honest only if the model never reads them. Of this suite no model does without them: NOTMAD predicts
genes from genes, the Environment VAE encodes whole cells, MED-MAGMA scales whole rows and columns; their fits are
refused by name, and `Fit.entry_log_density` scores entries of held-out cells instead. A model of your own can take the
mask as an input:

    def model(expression, seen):
        ...
        with pyro.plate("cell", len(expression), dim=-2), pyro.plate("gene", expression.shape[1], dim=-1):
            with pyro.poutine.mask(mask=seen):
                pyro.sample("x", Normal(rate, noise), obs=expression)

Whether it does is not taken on trust: its joint density must not change when hidden entries do.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from .inference import Fit
from .inference.hidden import HIDDEN
from .inference.hidden import hidden_log_density as density_of
from .models.parts.errors import DataError
from .validation import listed

__all__ = ["hidden_log_density", "hide_entries"]


def hide_entries(
    data: xr.Dataset, *, share: float = 0.1, variable: str = "expression", mask: str = "seen", seed: int = 0
) -> xr.Dataset:
    """Hide a random set of entries; every row and column keeps at least one.

    Parameters
    ----------
    data
        Dataset with `variable` of two dims or more.
    share
        Of the entries, between 0 and 1.
    variable
        What entries are hidden of.
    mask
        Name of the variable that is made: True where an entry is seen.
    seed
        Of the choice.

    Returns
    -------
    xr.Dataset
        `data` with the hidden entries of `variable` replaced by the mean of what is seen of their column (rounded where
        all values are whole), `mask`, and ``hidden_<variable>`` with the true values, NaN where they are seen.

    Raises
    ------
    DataError
        If the variable or the share is not usable, or a name is taken.
    """
    if variable not in data or data[variable].ndim < 2:
        raise DataError(
            f"{variable}: found {listed(data.data_vars)}; wanted {variable!r} of two dims or more among them"
        )
    if not 0 < share < 1:
        raise DataError(f"share: found {share}; wanted a number between 0 and 1")
    taken = [name for name in (mask, HIDDEN + variable) if name in data.variables or name in data.dims]
    if taken:
        raise DataError(f"{taken[0]}: found it in the data; wanted a name that is free")
    values = data[variable].values
    seen = _seen(values.shape, share, seed)
    total = np.where(seen, values, 0).reshape(-1, values.shape[-1]).sum(axis=0)
    filling = total / seen.reshape(-1, values.shape[-1]).sum(axis=0)
    if not (values % 1).any():
        filling = filling.round()
    dims = data[variable].dims
    filled = np.where(seen, values, filling).astype(values.dtype)
    truth = np.where(seen, np.nan, values.astype(float))
    made = {variable: (dims, filled, data[variable].attrs), mask: (dims, seen), HIDDEN + variable: (dims, truth)}
    return data.assign(made).assign_attrs(hidden_in=variable, hidden_by=mask)


def hidden_log_density(fit: Fit, data: xr.Dataset, *, num_samples: int = 200, seed: int = 0) -> xr.DataArray:
    """Log density of every hidden entry given all that was seen, in nats.

    log of the mean over posterior draws of p(x_ig | draw); sites of cells are drawn from their posterior given what was
    seen of the cell. Entries must be independent given the latent sites.

    Parameters
    ----------
    fit
        Fit of a model that takes the mask, to the Dataset of `hide_entries`.
    data
        That Dataset.
    num_samples
        Posterior draws.
    seed
        Of the draws.

    Returns
    -------
    xr.DataArray
        With the dims of the variable; NaN where entries were seen.

    Raises
    ------
    DataError
        If `data` have no hidden entries.
    SchemaError
        If the model takes no mask or reads hidden entries all the same, or entries are not independent given the
        latent sites.
    """
    return density_of(fit, data, num_samples, seed=seed)


def _seen(shape: tuple[int, ...], share: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    seen = np.ones(int(np.prod(shape)), dtype=bool)
    seen[random.permutation(seen.size)[: max(1, round(share * seen.size))]] = False
    table = seen.reshape(-1, shape[-1])  # a view: what is shown again is shown in `seen`
    for row in np.flatnonzero(~table.any(axis=1)):
        table[row, random.integers(table.shape[1])] = True
    for column in np.flatnonzero(~table.any(axis=0)):
        table[random.integers(table.shape[0]), column] = True
    return seen.reshape(shape)
