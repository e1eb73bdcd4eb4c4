"""Where cells lie between archetypes: two coordinates a cell that are a fixed linear map of networks or of mixtures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..models.parts.errors import DataError
from ._notmad_covariates import Covariates, ReadsCovariates
from ._notmad_stream import (
    Values,
    archetype_rows,
    mixture_of,
    mixture_size,
    pieces,
    whole,
)

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..models.notmad import NOTMAD

Layout = Literal["networks", "polygon"]
AXES = ("first", "second")


class ArchetypeMap(ReadsCovariates):
    """The map of `NOTMADFit`."""

    def archetype_map(
        self, covariates: Covariates, *, layout: Layout = "networks", num_samples: int = 400, seed: int = 0
    ) -> xr.Dataset:
        """Two coordinates of every cell, with their uncertainty, and of every archetype.

        The map is made from the fit alone, so that cells of different data sets can be laid on each other.

        Parameters
        ----------
        covariates
            As for `networks`.
        layout
            ``"networks"``: the plane through the archetypes that keeps most of the squared distances between them
            (principal components of the posterior mean archetypes, Frobenius distance). A cell is where its network
            W_i is projected to, draw by draw, so that labels of archetypes play no part; distances are differences of
            networks as far as the plane shows them (``shown``).
            ``"polygon"``: archetypes at the corners of a regular polygon, cells at sum_k Z_ik corner_k. True to the
            mixture for up to three archetypes; with more, different mixtures may fall on one point.
        num_samples, seed
            As for `networks`.

        Returns
        -------
        xr.Dataset
            ``position (cell, axis)`` posterior mean, ``covariance (cell, axis, other_axis)`` of the posterior,
            ``archetype_position (archetype, axis)``, ``leading (cell)``: the archetype with the largest weight, and
            ``shown (axis)``: share of the squared distances between archetypes (1 in sum for up to three).

        Raises
        ------
        DataError
            If the layout is unknown, or as in `networks`.
        """
        if layout not in get_args(Layout):
            raise DataError(f"layout: found {layout!r}; wanted 'networks' or 'polygon'")
        table, cells = self._covariates(covariates)
        values = self._values(num_samples, seed)
        if layout == "polygon":
            corners = polygon(self.model.num_archetypes)
            positions = _of_mixtures(self.model, table, values, seed, torch.as_tensor(corners).unsqueeze(0))
            extra: dict[str, Any] = {}
        else:
            plane = Plane.through(mean_archetypes(self.model, values))
            corners, positions = plane.corners, _of_networks(self.model, table, values, seed, plane)
            extra = {"shown": ("axis", plane.shown)}
        mean, covariance = [], []
        for position in positions:
            centre = position.mean(0)
            off = position - centre
            mean.append(centre.cpu().numpy())
            covariance.append(torch.einsum("sni,snj->nij", off, off).cpu().numpy() / len(position))
        parts = pieces(len(table), mixture_size(self.model, values))
        leading = [mixture_of(self.model, table, values, seed, at).mean(0).argmax(-1).cpu().numpy() for at in parts]
        return xr.Dataset(
            {
                "position": (("cell", "axis"), np.concatenate(mean)),
                "covariance": (("cell", "axis", "other_axis"), np.concatenate(covariance)),
                "leading": ("cell", np.concatenate(leading)),
                "archetype_position": (("archetype", "axis"), corners),
                **extra,
            },
            {"cell": cells, "axis": list(AXES), "other_axis": list(AXES)},
            {"layout": layout},
        )


@dataclass(frozen=True)
class Plane:
    """Two directions in the space of networks.

    Attributes
    ----------
    centre
        Mean of the archetypes.
    directions
        Of unit length; zero where there are fewer than two.
    corners
        Where the archetypes lie.
    shown
        Share of the squared distances between archetypes along each.
    """

    centre: Float[np.ndarray, "regulator target"]
    directions: Float[np.ndarray, "axis regulator target"]
    corners: Float[np.ndarray, "archetype axis"]
    shown: Float[np.ndarray, " axis"]

    @classmethod
    def through(cls, archetypes: Float[np.ndarray, "archetype regulator target"]) -> Plane:
        """The principal plane of some networks; signs are such that the largest entry of a direction is positive."""
        centre = archetypes.mean(0)
        flat = (archetypes - centre).reshape(len(archetypes), -1)
        _, size, rows = np.linalg.svd(flat, full_matrices=False)
        real = size[:2] > 1e-9 * max(float(size[0]), 1e-300)
        directions = np.zeros((2, flat.shape[1]))
        directions[: len(real)] = rows[:2] * real[:, None]
        largest = np.abs(directions).argmax(1)
        directions *= np.where(directions[[0, 1], largest] < 0, -1.0, 1.0)[:, None]
        corners = flat @ directions.T
        shown = (corners**2).sum(0) / max(float((flat**2).sum()), 1e-300)
        return cls(centre, directions.reshape(2, *centre.shape), corners, shown)

    def project(self, networks: Float[Tensor, "draw cell regulator target"]) -> Float[Tensor, "draw cell axis"]:
        """Coordinates of networks."""
        directions = torch.as_tensor(self.directions).to(networks).flatten(1)
        centre = torch.as_tensor(self.centre).to(networks).flatten()
        return networks.flatten(-2) @ directions.T - directions @ centre


def polygon(count: int) -> Float[np.ndarray, "corner axis"]:
    """Corners of a regular polygon around 0, the first at the top; one point, or two, for fewer."""
    if count == 1:
        return np.zeros((1, 2))
    angles = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], 1).round(12)


def mean_archetypes(model: NOTMAD, values: Values) -> Float[np.ndarray, "archetype regulator target"]:
    """Posterior means of W_k."""
    return np.concatenate([W.mean(0).cpu().double().numpy() for _, W in archetype_rows(model, values)], 1)


def _of_mixtures(
    model: NOTMAD, table: np.ndarray, values: Values, seed: int, corners: Float[Tensor, "draw archetype axis"]
) -> Iterator[Float[Tensor, "draw cell axis"]]:
    for at in pieces(len(table), mixture_size(model, values)):
        Z = mixture_of(model, table, values, seed, at)
        yield Z @ corners.to(Z)


def _of_networks(
    model: NOTMAD, table: np.ndarray, values: Values, seed: int, plane: Plane
) -> Iterator[Float[Tensor, "draw cell axis"]]:
    """Networks of cells, projected; those that are mixtures through the coordinates of their archetypes."""
    if model.form == "projected":
        yield from (position for _, position in whole(model, table, values, seed, plane.project))
        return
    directions = torch.as_tensor(plane.directions)
    places: Tensor | float = 0.0
    for rows, W in archetype_rows(model, values):
        places = places + torch.einsum("skab,iab->ski", W, directions[:, rows].to(W))
    assert isinstance(places, Tensor)
    offset = (directions * torch.as_tensor(plane.centre)).sum((-2, -1)).to(places)
    yield from (position - offset for position in _of_mixtures(model, table, values, seed, places))
