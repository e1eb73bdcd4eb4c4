"""Centred and scaled expression, and the way back for data and networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import xarray as xr

from .models.parts.errors import DataError
from .validation import check_unique, listed, validate

if TYPE_CHECKING:
    from jaxtyping import Float

ScaleKind = Literal["common", "gene"]


def standardize(data: xr.Dataset, *, scale: ScaleKind = "common") -> tuple[xr.Dataset, Standardizer]:
    """Centre each gene and divide by a scale.

    Only ``expression`` changes. Other variables (covariates, a simulation's true networks) stay on their own scale.

    Parameters
    ----------
    data
        Dataset with ``expression (cell, gene)``; the training cells, if some are held out.
    scale
        ``"common"`` divides all genes by the root mean of the gene variances: ratios of variances, and therefore
        networks, stay as they are. ``"gene"`` divides each gene by its own standard deviation (ddof 0).

    Returns
    -------
    data : xr.Dataset
        With ``expression (cell, gene)`` transformed, ``expression_center (gene)`` and ``expression_scale (gene)`` in
        units of the original expression, and the attribute ``standardized``.
    standardizer : Standardizer
        The transform, for new cells and for networks.

    Raises
    ------
    DataError
        If the data are invalid or already standardised.
    """
    if scale not in get_args(ScaleKind):
        raise DataError(f"scale is {scale!r}; wanted one of {listed(get_args(ScaleKind))}")
    values = validate(data)["expression"].to_numpy().astype(np.float64)
    sd = values.std(axis=0)
    if scale == "common":
        sd = np.full_like(sd, np.sqrt(np.mean(sd**2)))
    standardizer = Standardizer(scale, _gene_names(data), values.mean(axis=0), sd)
    return standardizer.apply(data), standardizer


@dataclass(frozen=True, eq=False)
class Standardizer:
    """An affine transform of each gene, x_std = (x - center) / scale.

    Attributes
    ----------
    kind
        ``"common"`` or ``"gene"``, as in `standardize`.
    genes
        Names of the genes.
    center
        Subtracted from each gene, in units of the original expression.
    scale
        Divides each gene, in units of the original expression; positive.
    """

    kind: ScaleKind
    genes: tuple[str, ...]
    center: Float[np.ndarray, " gene"]
    scale: Float[np.ndarray, " gene"]

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScaleKind):
            raise DataError(f"kind is {self.kind!r}; wanted one of {listed(get_args(ScaleKind))}")
        check_unique("gene", np.asarray(self.genes))
        for name in ("center", "scale"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != (len(self.genes),) or not np.isfinite(values).all():
                raise DataError(f"{name} has shape {values.shape}; wanted {len(self.genes)} finite numbers")
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if (self.scale <= 0).any():
            bad = [gene for gene, scale in zip(self.genes, self.scale, strict=True) if scale <= 0]
            raise DataError(f"scale is not positive for {listed(bad)}; wanted positive numbers")

    def apply(self, data: xr.Dataset) -> xr.Dataset:
        """Transform new data with the centres and scales of the training data.

        Parameters
        ----------
        data
            Dataset on the original scale with the same genes in the same order; one cell is enough.

        Returns
        -------
        xr.Dataset
            Transformed and marked, as by `standardize`; floats keep their precision.

        Raises
        ------
        DataError
            If the data are invalid, already standardised, or have other genes.
        """
        validate(data, min_cells=1)
        if "standardized" in data.attrs:
            raise DataError(f"expression is already standardised (by {data.attrs['standardized']}); wanted raw values")
        self._check_genes(data)
        values = (data["expression"].to_numpy() - self.center) / self.scale
        return _with_expression(data, values).assign(
            expression_center=("gene", self.center.copy()), expression_scale=("gene", self.scale.copy())
        ).assign_attrs(standardized=self.kind)  # fmt: skip

    def invert(self, data: xr.Dataset) -> xr.Dataset:
        """Return data of this transform to the original scale.

        Parameters
        ----------
        data
            Dataset that this transform (or an equal one) has marked.

        Returns
        -------
        xr.Dataset
            On the original scale and without the mark.

        Raises
        ------
        DataError
            If the data are not standardised, or were standardised by another transform.
        """
        other = Standardizer.of(data)
        self._check_genes(data)
        if not (np.array_equal(other.center, self.center) and np.array_equal(other.scale, self.scale)):
            raise DataError("data were standardised by another transform; wanted equal centres and scales")
        values = data["expression"].to_numpy() * self.scale + self.center
        original = _with_expression(data, values).drop_vars(["expression_center", "expression_scale"])
        del original.attrs["standardized"]
        return original

    def networks_to_original(self, networks: xr.DataArray) -> xr.DataArray:
        """Express networks of standardised data on the original scale, W_orig[a, b] = W_std[a, b] scale_b / scale_a.

        From x_b = center_b + scale_b sum_a W_std[a, b] (x_a - center_a) / scale_a.

        Parameters
        ----------
        networks
            Effects of regulators on targets, dims ``regulator`` and ``target`` with names of genes, any further dims.

        Returns
        -------
        xr.DataArray
            Same dims, names and precision.

        Raises
        ------
        DataError
            If a dim, its names, or a gene is missing.
        """
        return self._rescale(networks, self.scale)

    def networks_from_original(self, networks: xr.DataArray) -> xr.DataArray:
        """Express networks of the original scale on the standardised one; the inverse of `networks_to_original`.

        Parameters
        ----------
        networks
            Effects of regulators on targets, dims ``regulator`` and ``target`` with names of genes, any further dims.

        Returns
        -------
        xr.DataArray
            Same dims, names and precision.

        Raises
        ------
        DataError
            If a dim, its names, or a gene is missing.
        """
        return self._rescale(networks, 1.0 / self.scale)

    @classmethod
    def of(cls, data: xr.Dataset) -> Self:
        """Rebuild the transform from data that it has marked.

        Parameters
        ----------
        data
            Dataset from `standardize` or `apply`, also after a selection of cells or genes, or from a file.

        Returns
        -------
        Standardizer
            For the genes in the data.

        Raises
        ------
        DataError
            If the data are not standardised.
        """
        lost = [name for name in ("expression_center", "expression_scale") if name not in data.variables]
        if "standardized" not in data.attrs or lost:
            found = f"lack {listed(lost)}" if lost else "lack the attribute 'standardized'"
            raise DataError(f"data are not standardised: they {found}; wanted the result of standardize")
        center, scale = data["expression_center"].to_numpy(), data["expression_scale"].to_numpy()
        return cls(data.attrs["standardized"], _gene_names(data), center, scale)

    def to_dict(self) -> dict[str, Any]:
        """Give the transform as JSON-able values, without loss.

        Returns
        -------
        dict
            ``kind``, ``genes``, ``center`` and ``scale``.
        """
        return {
            "kind": self.kind,
            "genes": list(self.genes),
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild the transform from `to_dict`.

        Parameters
        ----------
        values
            ``kind``, ``genes``, ``center`` and ``scale``.

        Returns
        -------
        Standardizer
            Equal to the one that was written, bit for bit.

        Raises
        ------
        DataError
            If an entry is missing or unusable.
        """
        missing = [name for name in ("kind", "genes", "center", "scale") if name not in values]
        if missing:
            raise DataError(f"standardizer lacks {listed(missing)}; found {listed(values)}")
        return cls(values["kind"], tuple(values["genes"]), values["center"], values["scale"])

    def _check_genes(self, data: xr.Dataset) -> None:
        found = _gene_names(data)
        if found == self.genes:
            return
        missing, extra = sorted(set(self.genes) - set(found)), sorted(set(found) - set(self.genes))
        if missing or extra:
            raise DataError(
                f"expression has other genes than the standardizer: missing {listed(missing)}, unknown {listed(extra)}"
            )
        raise DataError("expression has the genes in another order; wanted data.sel(gene=list(standardizer.genes))")

    def _rescale(self, networks: xr.DataArray, scale: Float[np.ndarray, " gene"]) -> xr.DataArray:
        by_gene = dict(zip(self.genes, scale, strict=True))
        of_regulator, of_target = (_along(networks, dim, by_gene) for dim in ("regulator", "target"))
        ratio = of_target[None, :] / of_regulator[:, None]
        if networks.dtype.kind == "f":
            ratio = ratio.astype(networks.dtype)
        scaled = networks.variable * xr.Variable(("regulator", "target"), ratio)
        return networks.copy(data=scaled.data)


def _gene_names(data: xr.Dataset) -> tuple[str, ...]:
    return tuple(str(gene) for gene in data["gene"].to_numpy())


def _with_expression(data: xr.Dataset, values: Float[np.ndarray, "cell gene"]) -> xr.Dataset:
    dtype = data["expression"].dtype
    return data.assign(expression=data["expression"].copy(data=values.astype(dtype if dtype.kind == "f" else float)))


def _along(networks: xr.DataArray, dim: str, by_gene: Mapping[str, float]) -> Float[np.ndarray, " gene"]:
    if dim not in networks.coords or networks[dim].dims != (dim,):
        raise DataError(f"networks have dims {listed(networks.dims)}; wanted the dim '{dim}' with names of genes")
    names = [str(name) for name in networks[dim].to_numpy()]
    unknown = [name for name in names if name not in by_gene]
    if unknown:
        raise DataError(f"networks have a {dim} unknown to the standardizer: {listed(unknown)}")
    return np.asarray([by_gene[name] for name in names])
