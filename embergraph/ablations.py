"""What mixtures, and networks of single cells, add: one fit of NOTMAD read in four ways.

Ablations of the NOTMAD paper (its figure 4): every cell has the network of one archetype or of a mixture, by itself or
as the average of its group. All are read off the same posterior, so that they differ in nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import xarray as xr

from .baselines.base import codes_of, covariates_of, labels_of
from .methods._notmad_projected import central_values
from .metrics import residuals
from .models.parts.errors import DataError
from .models.parts.projection import project
from .validation import listed

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from .methods import NOTMADFit

Archetypes = Literal["one", "mixture"]
Level = Literal["group", "cell"]

#: The four ablations, by the name that tables give them: what `networks` takes for `archetypes` and `level`.
ABLATIONS: dict[str, tuple[Archetypes, Level]] = {
    "one archetype a group": ("one", "group"),
    "one archetype a cell": ("one", "cell"),
    "mixture a group": ("mixture", "group"),
    "mixture a cell (full)": ("mixture", "cell"),
}

_CHUNK_ELEMENTS = 20_000_000


def networks(
    fit: NOTMADFit,
    data: xr.Dataset,
    train: xr.Dataset,
    *,
    archetypes: Archetypes = "mixture",
    level: Level = "cell",
    label: str = "environment",
    num_samples: int = 400,
    seed: int = 0,
) -> xr.Dataset:
    """Networks of cells with the mixture of the fit coarsened, from their covariates (and label) alone.

    The change is made to the mixture weights Z of every posterior draw (of a projected fit with draws: of its central
    values, as in `NOTMADFit.networks`), from which networks and intercepts follow as in the model. Group averages and
    noise scales are those of the training cells: weights are averaged over all training cells with a label, and sigma
    is the root mean square of the residuals that the networks leave in them, since each ablation leaves more than the
    full model.

    Parameters
    ----------
    fit
        Fit of a NOTMAD.
    data
        Cells with the ``covariates`` of the fit, and `label` where `level` is ``"group"``.
    train
        The training cells: ``expression``, ``covariates``, and `label` likewise.
    archetypes
        ``"mixture"``: the weights as they are. ``"one"``: all weight to the largest.
    level
        ``"cell"``: weights of each cell. ``"group"``: mean weights of the training cells of its group; with
        ``archetypes="one"`` the largest of these means.
    label
        Variable ``(cell)`` of the groups.
    num_samples, seed
        Posterior draws used, as for `NOTMADFit.networks`.

    Returns
    -------
    xr.Dataset
        ``network (cell, regulator, target)``, posterior mean projected to a DAG; ``intercept (cell, gene)`` and ``sigma
        (gene)``, in units of the data that were fitted: what `metrics.evaluate` takes.

    Raises
    ------
    DataError
        If covariates or labels do not serve, or an option is unknown.
    """
    for name, value, options in (("archetypes", archetypes, Archetypes), ("level", level, Level)):
        if value not in get_args(options):
            raise DataError(f"{name} is {value!r}; wanted one of {listed(get_args(options))}")
    names = tuple(fit.template.coords.get("covariate", ()))
    reader = _Reader(fit, archetypes, num_samples, seed)
    if level == "cell":
        found, of_train = (reader.of_rows(covariates_of(cells, names)) for cells in (data, train))
    else:
        levels, groups = np.unique(labels_of(train, label), return_inverse=True)
        of_data = codes_of(data, label, levels)
        by_group = reader.of_groups(covariates_of(train, names), groups)
        found, of_train = ((by_group[0][rows], by_group[1][rows]) for rows in (of_data, groups))
    error = residuals(_named(fit, of_train, train), train)
    result = _named(fit, found, data).assign(sigma=("gene", np.sqrt(np.mean(error**2, axis=0))))
    return result.assign_attrs(archetypes=archetypes, level=level, label=label if level == "group" else "")


class _Reader:
    """Networks and intercepts from weights of archetypes, over the draws of a fit."""

    def __init__(self, fit: NOTMADFit, archetypes: Archetypes, num_samples: int, seed: int) -> None:
        self.model, self.archetypes, self.seed = fit.model, archetypes, seed
        central = fit.model.form == "projected" and fit.draws is not None  # as `NOTMADFit.networks` reports them
        self.values = central_values(fit.stored) if central else fit.global_draws(num_samples, seed)
        with torch.no_grad():
            self.W = self.model.archetypes_of(self.values)
        self.b = self.values["intercepts"].reshape(len(self.W), *self.W.shape[1:3])

    def of_rows(self, covariates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        unique, inverse = np.unique(covariates, axis=0, return_inverse=True)
        network, intercept = self._networks(self._mixture(unique))
        return network[inverse.ravel()], intercept[inverse.ravel()]

    def of_groups(self, covariates: np.ndarray, groups: Int[np.ndarray, " cell"]) -> tuple[np.ndarray, np.ndarray]:
        Z = self._mixture(covariates)
        rows = torch.as_tensor(groups, device=Z.device)
        total = Z.new_zeros(Z.shape[0], int(rows.max()) + 1, Z.shape[2]).index_add(1, rows, Z)
        return self._networks(total / torch.bincount(rows).to(Z)[:, None])

    @torch.no_grad()
    def _mixture(self, covariates: np.ndarray) -> Float[torch.Tensor, "draw cell archetype"]:
        like = self.W
        with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):  # a spread of cells is drawn
            torch.manual_seed(self.seed)
            return self.model.mixture_of(torch.as_tensor(covariates).to(like), self.values)

    @torch.no_grad()
    def _networks(self, Z: Float[torch.Tensor, "draw cell archetype"]) -> tuple[np.ndarray, np.ndarray]:
        if self.archetypes == "one":
            Z = torch.nn.functional.one_hot(Z.argmax(-1), Z.shape[-1]).to(Z)
        step = max(1, _CHUNK_ELEMENTS // (self.W.shape[0] * self.W.shape[-1] ** 2))
        W, b = self.W.unsqueeze(1), self.b.unsqueeze(1)  # an axis for the cells
        network, intercept = [], []
        for part in Z.split(step, dim=1):
            equations = self.model.equations(part, W, b, b.new_ones(1), {})
            network.append(project(equations.networks().mean(0)).networks.cpu().numpy())
            intercept.append(equations.intercepts().mean(0).cpu().numpy())
        return np.concatenate(network), np.concatenate(intercept)


def _named(fit: NOTMADFit, arrays: tuple[np.ndarray, np.ndarray], cells: xr.Dataset) -> xr.Dataset:
    genes = np.asarray(fit.template.coords.get("gene", range(fit.model.num_genes)))
    return xr.Dataset(
        {"network": (("cell", "regulator", "target"), arrays[0]), "intercept": (("cell", "gene"), arrays[1])},
        {"cell": cells["cell"].to_numpy(), "gene": genes, "regulator": genes, "target": genes},
    )
