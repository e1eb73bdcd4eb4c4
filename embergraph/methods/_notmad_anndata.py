"""Results of a fitted NOTMAD put into the AnnData object that its cells came from."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.sparse import csr_matrix

from ..models.parts.errors import DataError
from ..validation import check_unique, listed
from ._notmad_covariates import Covariates, check_scale
from ._notmad_map import mean_archetypes
from ._notmad_networks import Networks, Scale
from ._notmad_stream import group_means, mixture_of, mixture_size, pieces

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class AnnDataTarget(Protocol):
    """What `AnnDataOut.to_anndata` reads and writes; AnnData has it, and anndata itself is not needed.

    Attributes
    ----------
    obs
        Table of cells: columns can be set.
    obsm, varp, uns
        Mappings that can be written to.
    obs_names, var_names
        Names of cells and genes.
    """

    obs: Any
    obsm: Any
    varp: Any
    uns: Any
    obs_names: Any
    var_names: Any


class AnnDataOut(Networks):
    """`NOTMADFit` to AnnData."""

    def to_anndata(
        self,
        adata: AnnDataTarget,
        covariates: Covariates | None = None,
        *,
        key: str = "notmad",
        num_samples: int = 400,
        edge_threshold: float = 0.05,
        scale: Scale = "fitted",
        overwrite: bool = False,
        seed: int = 0,
    ) -> None:
        """Write mixture, mean network and archetypes into `adata`, for all its cells.

        | where | what |
        |---|---|
        | ``obsm[key + "_mixture"]`` | posterior mean weights of the archetypes |
        | ``obs[key + "_archetype"]`` | archetype with the largest weight, ``"0"``, ``"1"``, ... |
        | ``obs[key + "_entropy"]`` | posterior mean entropy of the weights, nats (0: one archetype alone) |
        | ``varp[key + "_network"]`` | mean network of these cells, regulators in rows; sparse, 0 for other genes |
        | ``varp[key + "_edge_probability"]`` | P(abs(effect in the mean network) > edge_threshold) |
        | ``uns[key]`` | ``archetypes`` and ``genes`` (their axes), ``covariates``, settings as JSON, versions |

        Networks of single cells are not written: `networks` makes them from the covariates.

        Parameters
        ----------
        adata
            Written to in place, and only once everything is computed.
        covariates
            Of its cells; left out, they are encoded from the columns of ``adata.obs`` (see `encode`). A Dataset or
            data frame is matched to ``obs_names``.
        key
            Start of the names.
        num_samples, scale, seed
            As for `networks`.
        edge_threshold
            In units of `scale`.
        overwrite
            Whether entries of these names may be replaced.

        Raises
        ------
        DataError
            If an entry exists and `overwrite` is False, a gene of the fit or a cell is missing, names are not unique,
            or covariates do not fit the model.
        """
        check_scale(scale)
        columns = self._columns_in(adata)
        _refuse_existing(adata, key, overwrite)
        given = self.encode(adata.obs) if covariates is None else covariates
        table = self._rows_of(adata, given)
        values = self._values(num_samples, seed)
        mixture, entropy = [], []
        for at in pieces(len(table), mixture_size(self.model, values)):
            Z = mixture_of(self.model, table, values, seed, at).cpu().numpy()
            mixture.append(Z.mean(0))
            entropy.append(_entropy(Z).mean(0))
        weights = np.concatenate(mixture)
        ratio = self._ratio(scale)
        network, probability = (np.zeros((len(self.gene_names),) * 2) for _ in range(2))
        for rows, (mean,) in group_means(self.model, [table], values, seed):
            draws = mean.cpu().numpy()
            network[rows] = draws.mean(0) * ratio[rows]
            probability[rows] = (np.abs(draws) > edge_threshold).mean(0)
        about = {
            "archetypes": mean_archetypes(self.model, values) * ratio,
            "genes": self.gene_names.astype(str),
            "covariates": np.asarray(self.covariate_names, dtype=str),
            "edge_threshold": edge_threshold,
            "scale": scale,
            "settings": json.dumps(self.settings, default=str),
            "versions": {name: version(name) for name in ("embergraph", "torch", "pyro-ppl")},
        }
        adata.obsm[f"{key}_mixture"] = weights
        adata.obs[f"{key}_archetype"] = weights.argmax(1).astype(str)
        adata.obs[f"{key}_entropy"] = np.concatenate(entropy)
        adata.varp[f"{key}_network"] = _spread(network, columns, len(adata.var_names))
        adata.varp[f"{key}_edge_probability"] = _spread(probability, columns, len(adata.var_names))
        adata.uns[key] = about

    def _columns_in(self, adata: AnnDataTarget) -> Int[np.ndarray, " gene"]:
        names = np.asarray(adata.var_names, dtype=str)
        check_unique("var_names: gene", names)
        place = {name: i for i, name in enumerate(names)}
        missing = [gene for gene in self.gene_names.astype(str) if gene not in place]
        if missing:
            raise DataError(f"var_names: found {listed(names)}; wanted the genes of the fit, {listed(missing)} too")
        return np.asarray([place[gene] for gene in self.gene_names.astype(str)], dtype=int)

    def _rows_of(self, adata: AnnDataTarget, covariates: Covariates) -> Float[np.ndarray, "cell covariate"]:
        table, cells = self._covariates(covariates)
        wanted = np.asarray(adata.obs_names, dtype=str)
        check_unique("obs_names: cell", wanted)
        if len(table) == len(wanted) and not (hasattr(covariates, "columns") or hasattr(covariates, "coords")):
            return table  # an array has no names
        place = {str(name): i for i, name in enumerate(cells)}
        missing = [name for name in wanted if name not in place]
        if missing:
            raise DataError(f"covariates: found none for cells {listed(missing)}; wanted all cells of obs_names")
        return table[[place[name] for name in wanted]]

    def _ratio(self, scale: Scale) -> Float[np.ndarray, "regulator target"]:
        """What effects are multiplied with, from the fitted to another scale."""
        size = self.standardizer.scale if scale == "original" else np.ones(len(self.gene_names))
        return size[None, :] / size[:, None]


def _refuse_existing(adata: AnnDataTarget, key: str, overwrite: bool) -> None:
    wanted = {
        "obsm": [f"{key}_mixture"],
        "obs": [f"{key}_archetype", f"{key}_entropy"],
        "varp": [f"{key}_network", f"{key}_edge_probability"],
        "uns": [key],
    }
    there = [f"{slot}[{name!r}]" for slot, names in wanted.items() for name in names if name in getattr(adata, slot)]
    if there and not overwrite:
        raise DataError(f"adata: found {listed(there)}; wanted another key=, or overwrite=True")


def _entropy(Z: Float[np.ndarray, "draw cell archetype"]) -> Float[np.ndarray, "draw cell"]:
    return -np.where(Z > 0, Z * np.log(np.where(Z > 0, Z, 1.0)), 0.0).sum(-1)


def _spread(matrix: np.ndarray, columns: np.ndarray, size: int) -> csr_matrix:
    """A gene x gene matrix among all genes of a larger table."""
    rows, targets = np.nonzero(matrix)
    return csr_matrix((matrix[rows, targets], (columns[rows], columns[targets])), shape=(size, size))
