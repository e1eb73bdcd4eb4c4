"""What a fitted NOTMAD says about networks: of single cells, of groups, and how groups differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..inference import Fit
from ..inference.inputs import as_dataset
from ..inference.messengers import isolated
from ..models.notmad import NOTMAD
from ..models.parts.errors import DataError
from ..models.parts.projection import is_acyclic, project
from ..standardization import Standardizer

if TYPE_CHECKING:
    from jaxtyping import Float

CHUNK_ELEMENTS = 20_000_000
Scale = Literal["fitted", "original"]
Covariates = Any
"""A Dataset with ``covariates``, a DataFrame of them, or an array (cell, covariate)."""


class Networks(Fit):
    """Queries of `NOTMADFit`."""

    model: NOTMAD

    def networks(
        self,
        covariates: Covariates,
        *,
        num_samples: int = 400,
        interval: float = 0.9,
        edge_threshold: float = 0.05,
        project_mean: bool = True,
        draws: bool = False,
        scale: Scale = "fitted",
        seed: int = 0,
    ) -> xr.Dataset:
        """Networks of any cells, old or new, from their covariates alone.

        Parameters
        ----------
        covariates
            Covariates of the cells: a Dataset, a DataFrame with the fit's columns, or an array.
        num_samples
            Posterior draws used.
        interval
            Mass of the central interval.
        edge_threshold
            Effects above it in size count for ``edge_probability``.
        project_mean
            Whether ``network`` is projected to a DAG. Every draw of the exact model is acyclic, but their mean over
            several orders need not be; interval and probability are those of the draws, not projected.
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
            ``network`` (posterior mean), ``lower``, ``upper``, ``edge_probability`` over (cell, regulator, target),
            ``intercept (cell, gene)``, ``sigma (gene)`` (posterior means), ``removed_mass (cell)`` of the projection
            and, if wanted, ``draws (draw, cell, regulator, target)``. Attributes: ``share_acyclic`` of draws before any
            projection, and the settings.

        Raises
        ------
        DataError
            If covariates do not fit the model, or an option is out of range.
        """
        if not 0 < interval < 1:
            raise DataError(f"interval: found {interval}; wanted a number between 0 and 1")
        table, cells = self._covariates(covariates)
        unique, inverse = np.unique(table, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        values = self.global_draws(num_samples, seed)
        quantiles = torch.tensor([0.5 - interval / 2, 0.5 + interval / 2], dtype=torch.double)
        parts: dict[str, list[np.ndarray]] = {}
        acyclic = []
        for W, b in self._chunks(unique, values, seed):
            mean = W.mean(0)
            low, high = torch.quantile(W.double(), quantiles.to(W.device), dim=0)
            projected = project(mean) if project_mean else None
            acyclic.append(is_acyclic(W[:, 0]).double().mean())
            found = {
                "network": mean if projected is None else projected.networks,
                "lower": low,
                "upper": high,
                "edge_probability": (W.abs() > edge_threshold).double().mean(0),
                "intercept": b.mean(0),
            }
            if projected is not None:
                found["removed_mass"] = projected.removed_mass
            if draws:
                found["draws"] = W.transpose(0, 1)
            for name, value in found.items():
                parts.setdefault(name, []).append(value.cpu().numpy())
        result = self._named({name: np.concatenate(v)[inverse] for name, v in parts.items()}, cells)
        if "sigma" in values:  # on/off genes have none
            sigma = values["sigma"].reshape(len(values["sigma"]), -1).mean(0).cpu().numpy()
            result["sigma"] = ("gene", np.broadcast_to(sigma, result.sizes["gene"]).copy())
        result.attrs |= {
            "share_acyclic": float(torch.stack(acyclic).mean()),
            "interval": interval,
            "edge_threshold": edge_threshold,
            "point_estimate": int(len(values["intercepts"]) == 1 or self.model.form == "relaxed"),
        }
        return self.rescaled(result) if scale == "original" else result

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
        """
        values = self.global_draws(num_samples, seed)
        means = []
        for group in (first, second):
            table, _ = self._covariates(group)
            unique, counts = np.unique(table, axis=0, return_counts=True)
            share = torch.as_tensor(counts / counts.sum())
            total, start = values["intercepts"].new_zeros(()), 0
            for W, _ in self._chunks(unique, values, seed):
                weight = share[start : start + W.shape[1]].to(W)
                total = total + torch.einsum("snab,n->sab", W, weight)
                start += W.shape[1]
            means.append(total)
        difference = means[0] - means[1]
        tails = torch.tensor([0.5 - interval / 2, 0.5 + interval / 2], dtype=torch.double, device=difference.device)
        low, high = torch.quantile(difference.double(), tails, dim=0)
        found = {
            "difference": difference.mean(0),
            "lower": low,
            "upper": high,
            "first": means[0].mean(0),
            "second": means[1].mean(0),
            "change_probability": (difference.abs() > edge_threshold).double().mean(0),
        }
        result = self._named({name: value.cpu().numpy() for name, value in found.items()}, None)
        result.attrs |= {"interval": interval, "edge_threshold": edge_threshold}
        return self.rescaled(result) if scale == "original" else result

    def mixture(self, covariates: Covariates, *, num_samples: int = 400, seed: int = 0) -> xr.Dataset:
        """Archetype weights of any cells: posterior mean and 90 % interval, (cell, archetype).

        Archetypes have no names of their own: labels may permute between restarts, and between the orders of one
        posterior they are kept apart only by the common start of all components.
        """
        table, cells = self._covariates(covariates)
        values = self.global_draws(num_samples, seed)
        like = self.model.encoder.location
        with torch.no_grad(), isolated(seed):  # logits of new cells are drawn
            Z = self.model.mixture_of(torch.as_tensor(table).to(like), values)
        tails = torch.tensor([0.05, 0.95], dtype=Z.dtype, device=Z.device)
        low, high = torch.quantile(Z, tails, dim=0)
        found = {"mixture": Z.mean(0), "lower": low, "upper": high}
        arrays = {name: (("cell", "archetype"), value.cpu().numpy()) for name, value in found.items()}
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
            if {"regulator", "target"} <= set(variable.dims) and name != "edge_probability":
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

    def _covariates(self, given: Covariates) -> tuple[Float[np.ndarray, "cell covariate"], np.ndarray]:
        names = self.template.coords.get("covariate")
        if hasattr(given, "columns") and hasattr(given, "to_numpy"):
            missing = [name for name in names or () if name not in set(given.columns)]
            if missing:
                raise DataError(
                    f"covariates: found columns {list(map(str, given.columns))}; wanted {missing} among them"
                )
            frame = given[names] if names else given
            given = xr.Dataset(
                {"covariates": (("cell", "covariate"), frame.to_numpy(float))},
                {"cell": np.asarray(frame.index, dtype=str), "covariate": np.asarray(frame.columns, dtype=str)},
            )
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

    def _chunks(self, table: np.ndarray, values: dict[str, Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """W (draw, cell, regulator, target) and b (draw, cell, gene) of some cells at a time."""
        like = self.model.encoder.location
        num_draws, p = len(values["intercepts"]), self.model.num_genes
        with torch.no_grad():
            step = max(1, CHUNK_ELEMENTS // (num_draws * p * p))
            for start in range(0, len(table), step):
                part = torch.as_tensor(table[start : start + step]).to(like)
                with isolated(seed + start):  # logits of new cells are drawn
                    found = self.model.networks_of(part, values)
                yield found

    def _named(self, arrays: dict[str, np.ndarray], cells: np.ndarray | None) -> xr.Dataset:
        genes = np.asarray(self.template.coords.get("gene", range(self.model.num_genes)))
        edge, first = ("regulator", "target"), () if cells is None else ("cell",)
        dims: dict[str, tuple[str, ...]] = {
            "intercept": ("cell", "gene"), "removed_mass": ("cell",), "draws": ("cell", "draw", *edge)
        }  # fmt: skip
        variables = {name: (dims.get(name, (*first, *edge)), value) for name, value in arrays.items()}
        result = xr.Dataset(variables, {"regulator": genes, "target": genes})
        if cells is not None:
            result = result.assign_coords(cell=cells, gene=genes)
        return result.transpose("draw", ...) if "draws" in result else result
