"""Four genes whose effects on each other follow one covariate, with a gap of it held out."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ..data import from_arrays
from ..models.parts.errors import DataError
from ._structural_noise import solve


def simulated_linear_contexts(seed: int = 0, *, num_cells: int = 500, noise_scale: float = 0.1) -> xr.Dataset:
    """Simulate the four-gene test of the published successor of NOTMAD.

    The covariate C runs evenly from 1 to 2. Effects are gene_0 -> gene_1: C - 2, gene_2 -> gene_1: 2 C,
    gene_3 -> gene_1: C^2, gene_3 -> gene_2: C; noise is uniform on +-`noise_scale`. The published test asks for mean
    squared errors below 0.1 (networks) and 0.01 (expression), on this scale.

    Parameters
    ----------
    seed
        The same seed gives the same data.
    num_cells
        At least 20, so that each part of the split has cells.
    noise_scale
        Largest magnitude of the noise.

    Returns
    -------
    xr.Dataset
        ``expression (cell, gene)``, ``covariates (cell, covariate)`` (C alone), ``true_networks (cell, regulator,
        target)`` and ``split (cell)``: ``"validation"`` for C from 1.7 to 1.8, ``"test"`` from 1.8 to 1.9, both without
        their end, else ``"train"``, on either side of the gap.

    Raises
    ------
    DataError
        If a setting is out of range.

    Examples
    --------
    >>> from embergraph.datasets import simulated_linear_contexts
    >>> data = simulated_linear_contexts()
    >>> int((data["split"] == "test").sum())
    50
    """
    if num_cells < 20:
        raise DataError(f"num_cells is {num_cells}; wanted at least 20")
    if not 0 < noise_scale < np.inf:
        raise DataError(f"noise_scale is {noise_scale}; wanted a positive number")
    C = np.linspace(1.0, 2.0, num_cells)
    networks = np.zeros((num_cells, 4, 4))
    networks[:, 0, 1], networks[:, 2, 1], networks[:, 3, 1], networks[:, 3, 2] = C - 2, 2 * C, C**2, C
    expression = solve(np.random.default_rng(seed), networks, "uniform", noise_scale)
    data = from_arrays(expression, C[:, None], covariate_names=["C"])
    genes = data["gene"].to_numpy()
    parts = np.select([(C >= 1.7) & (C < 1.8), (C >= 1.8) & (C < 1.9)], ["validation", "test"], "train")
    return data.assign(
        true_networks=(("cell", "regulator", "target"), networks), split=("cell", parts)
    ).assign_coords(regulator=genes, target=genes).assign_attrs(
        simulator="simulated_linear_contexts", seed=seed, num_cells=num_cells, noise_scale=noise_scale
    )  # fmt: skip
