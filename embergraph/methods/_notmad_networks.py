"""What a fitted NOTMAD says about networks: of single cells, of groups, and how groups differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr

from ..models.parts.errors import DataError
from ..models.parts.projection import project
from ..standardization import Standardizer
from ._notmad_covariates import Covariates, ReadsCovariates, check_interval, check_scale, check_threshold
from ._notmad_projected import central_mixtures, central_values
from ._notmad_stream import (
    CHUNK_ELEMENTS,
    Values,
    distinct,
    group_means,
    mixture_of,
    mixture_size,
    num_draws_of,
    parts_of,
    pieces,
    share_acyclic,
)
from ._notmad_summaries import Summaries, quantiles_of, tails

Scale = Literal["fitted", "original"]
EDGE = ("regulator", "target")


class Networks(ReadsCovariates):
    """Queries of `NOTMADFit`."""

    def networks(
        self,
        covariates: Covariates,
        *,
        num_samples: int = 400,
        interval: float | None = 0.9,
        quantiles: Sequence[float] = (),
        edge_threshold: float | None = 0.05,
        project_mean: bool = True,
        draws: bool = False,
        scale: Scale = "fitted",
        seed: int = 0,
    ) -> xr.Dataset:
        """Networks of any cells, old or new, from their covariates alone.

        Works through the cells in parts, so that the memory beyond the result is a few hundred MiB whatever their
        number (if `draws` are not asked for); of a projected fit, at least the draws of one cell.

        Parameters
        ----------
        covariates
            Covariates of the cells: a Dataset, a DataFrame (see `encode`), or an array.
        num_samples
            Posterior draws used.
        interval
            Mass of the central interval; None leaves it out.
        quantiles
            Probabilities of further quantiles.
        edge_threshold
            Effects above it in size count for ``edge_probability``, in units of the data that were fitted whatever
            `scale` is; None leaves it out.
        project_mean
            Whether ``network`` is projected to a DAG. Every draw of an exact or projected model is acyclic, but their
            mean need not be; interval and probability are those of the draws, not projected. A projected model's
            ``network`` is that of the posterior medians of all weights, not a mean over draws, which blurs directions.
        draws
            Whether to return the draws as well (draw x cell x gene x gene numbers).
        scale
            ``"fitted"``: effects in units of the data that were fitted; ``"original"``: W[a, b] sd_b / sd_a undone, so
            that effects are in units of the target per unit of the regulator before standardisation.
        seed
            Seed of the draws.

        Returns
        -------
        xr.Dataset
            ``network`` (posterior mean; of a projected model the network of the posterior medians, which may lie
            outside the interval of few draws), ``lower``, ``upper`` (the k-th of n draws counts as the quantile k / (n
            + 1), so that intervals hold their mass however few draws there are), ``edge_probability`` over (cell,
            regulator, target),
            ``intercept (cell, gene)``, ``sigma (gene)`` (posterior means), ``removed_mass (cell)`` of the projection
            and, if wanted, ``quantiles (quantile, cell, regulator, target)`` and ``draws (draw, cell, regulator,
            target)``. Attributes: ``share_acyclic`` of draws before any projection of the mean, ``acyclic`` (0 where
            even the model's networks are none: those of factor networks are summaries among genes, with cycles),
            ``outside_training_range``, the number of cells with a covariate beyond those of the training cells, whose
            networks are extrapolated, and the settings.

        Raises
        ------
        DataError
            If covariates do not fit the model, or an option is out of range.
        """
        check_interval(interval)
        check_scale(scale)
        check_threshold(edge_threshold)
        if np.ndim(quantiles) != 1 or not all(0 <= float(q) <= 1 for q in quantiles):
            raise DataError(f"quantiles: found {quantiles}; wanted a list of numbers between 0 and 1")
        wanted = [float(q) for q in quantiles]
        table, cells = self._covariates(covariates)
        unique, inverse, _ = distinct(self.model, table)
        values = self._values(num_samples, seed)
        ends = tails(interval) if interval is not None else ()
        result = Summaries(inverse, num_draws_of(values), self.model, (*ends, *wanted), edge_threshold, draws)
        for part in parts_of(self.model, unique, values, seed):
            result.add(part)
        found = result.found
        centre = central_values(self.stored) if self.model.form == "projected" and self.draws is not None else None
        if centre is not None:
            found["network"] = central_mixtures(self.model, table, centre)
        if project_mean:
            found["removed_mass"] = _project_in_parts(found["network"])
        if ends:
            found["lower"], found["upper"] = found["quantiles"][:2]
        found["quantiles"] = found["quantiles"][len(ends) :]
        dataset = self._named(found, cells, wanted)
        dataset["intercept"] = (("cell", "gene"), self._intercepts(table, values if centre is None else centre, seed))
        if "sigma" in values:  # on/off genes have none
            sigma = values["sigma"].reshape(num_draws_of(values), -1).mean(0).cpu().numpy()
            dataset["sigma"] = ("gene", np.broadcast_to(sigma, self.model.num_genes).copy())
        dataset.attrs |= {
            "share_acyclic": share_acyclic(self.model, unique, values, seed),
            "acyclic": int(self._is_causal),
            "point_estimate": int(num_draws_of(values) == 1 or self.model.form == "relaxed"),
            "scale": scale,
            "outside_training_range": self._outside(table),
            **{k: v for k, v in (("interval", interval), ("edge_threshold", edge_threshold)) if v is not None},
        }
        return self.rescaled(dataset) if scale == "original" else dataset

    def contrast(
        self,
        first: Covariates,
        second: Covariates,
        *,
        num_samples: int = 400,
        interval: float = 0.9,
        edge_threshold: float = 0.05,
        scale: Scale = "fitted",
        seed: int = 0,
    ) -> xr.Dataset:
        """How the mean network of one set of cells differs from that of another, draw by draw.

        Parameters
        ----------
        first, second
            Covariates of the two groups; the contrast is first minus second.
        num_samples, interval, edge_threshold, scale, seed
            As for `networks`.

        Returns
        -------
        xr.Dataset
            ``difference``, ``lower``, ``upper``, ``first``, ``second`` (posterior means) and
            ``change_probability``, P(abs(difference) > edge_threshold), over (regulator, target).

        Raises
        ------
        DataError
            As in `networks`.
        """
        check_interval(interval)
        check_scale(scale)
        check_threshold(edge_threshold)
        tables = [self._covariates(group)[0] for group in (first, second)]
        p, values = self.model.num_genes, self._values(num_samples, seed)
        names = ("difference", "lower", "upper", "first", "second", "change_probability")
        found = {name: np.empty((p, p)) for name in names}
        for rows, means in group_means(self.model, tables, values, seed):
            one, two = (mean.cpu().numpy() for mean in means)
            difference = one - two
            found["difference"][rows] = difference.mean(0)
            found["first"][rows], found["second"][rows] = one.mean(0), two.mean(0)
            found["lower"][rows], found["upper"][rows] = quantiles_of(difference, tails(interval))
            found["change_probability"][rows] = (np.abs(difference) > edge_threshold).mean(0)
        result = self._named(found, None)
        result.attrs |= {"interval": interval, "edge_threshold": edge_threshold, "scale": scale}
        return self.rescaled(result) if scale == "original" else result

    def mixture(self, covariates: Covariates, *, num_samples: int = 400, seed: int = 0) -> xr.Dataset:
        """Archetype weights of any cells: posterior mean and 90 % interval, (cell, archetype).

        Archetypes have no names of their own: labels may permute between restarts. Between the chains of one posterior
        they are matched; between the orders of a guide the common start of all components keeps them apart.
        """
        table, cells = self._covariates(covariates)
        values = self._values(num_samples, seed)
        found: dict[str, list[np.ndarray]] = {"mixture": [], "lower": [], "upper": []}
        for at in pieces(len(table), mixture_size(self.model, values)):
            Z = mixture_of(self.model, table, values, seed, at).cpu().numpy()
            for name, value in zip(found, (Z.mean(0), *quantiles_of(Z, (0.05, 0.95))), strict=True):
                found[name].append(value)
        arrays = {name: (("cell", "archetype"), np.concatenate(parts)) for name, parts in found.items()}
        return xr.Dataset(arrays, {"cell": cells})

    def rescaled(self, networks: xr.Dataset) -> xr.Dataset:
        """Networks on the scale of the data before standardisation, see `Standardizer.networks_to_original`.

        Raises
        ------
        DataError
            If the fit was made on data that were not standardised.
        """
        transform = self.standardizer
        result = networks.copy()
        for name, variable in networks.data_vars.items():
            if set(EDGE) <= set(variable.dims) and not str(name).endswith("probability"):
                result[name] = transform.networks_to_original(variable)
        gene = xr.DataArray(transform.scale, dims="gene", coords={"gene": np.asarray(transform.genes, dtype=str)})
        if "sigma" in networks:
            result["sigma"] = networks["sigma"] * gene
        if "intercept" in networks:
            center = gene.copy(data=transform.center)
            carried = xr.dot(result["network"], center.rename(gene="regulator"), dim="regulator").rename(target="gene")
            result["intercept"] = networks["intercept"] * gene + center - carried
        return result.assign_attrs(networks.attrs)

    @property
    def standardizer(self) -> Standardizer:
        """The transform that the training data went through."""
        return Standardizer.of(self.template.extra_dataset())

    @property
    def _is_causal(self) -> bool:
        """Whether every network of a draw is a DAG among genes."""
        return self.model.form != "relaxed" and self.model.archetypes.acyclic

    def _intercepts(self, table: np.ndarray, values: Values, seed: int) -> np.ndarray:
        """Posterior mean of b_i (cell, gene)."""
        b = values["intercepts"].reshape(num_draws_of(values), -1, self.model.num_genes)
        found = []
        for at in pieces(len(table), mixture_size(self.model, values) + num_draws_of(values) * self.model.num_genes):
            found.append((mixture_of(self.model, table, values, seed, at) @ b).mean(0).cpu().numpy())
        return np.concatenate(found)

    def _named(
        self, arrays: dict[str, np.ndarray], cells: np.ndarray | None, quantiles: Sequence[float] = ()
    ) -> xr.Dataset:
        genes, first = self.gene_names, () if cells is None else ("cell",)
        dims: dict[str, tuple[str, ...]] = {
            "removed_mass": ("cell",), "draws": ("draw", "cell", *EDGE), "quantiles": ("quantile", "cell", *EDGE)
        }  # fmt: skip
        variables = {
            name: (dims.get(name, (*first, *EDGE)), value)
            for name, value in arrays.items()
            if name != "quantiles" or quantiles
        }
        result = xr.Dataset(variables, {"regulator": genes, "target": genes})
        if quantiles:
            result = result.assign_coords(quantile=list(quantiles))
        return result if cells is None else result.assign_coords(cell=cells, gene=genes)


def _project_in_parts(networks: np.ndarray) -> np.ndarray:
    """Project in place; the removed mass of each network."""
    removed = np.empty(len(networks))
    for at in pieces(len(networks), networks[0].size, CHUNK_ELEMENTS // 4):
        projected = project(torch.as_tensor(networks[at]))
        networks[at], removed[at] = projected.networks.numpy(), projected.removed_mass.numpy()
    return removed
