"""What a covariate does in a fitted NOTMAD: curves of archetype logits, of the mixture and of single edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..encoding import factors_of
from ..models.parts.encoders import Encoder, GPEncoder
from ..models.parts.errors import DataError
from ..validation import listed
from ._notmad_covariates import Covariates, check_interval, check_scale
from ._notmad_networks import Networks, Scale
from ._notmad_stream import (
    Values,
    archetype_rows,
    as_input,
    mixture_of,
    mixture_size,
    num_draws_of,
    pieces,
    whole,
)
from ._notmad_summaries import quantiles_of, tails

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from ..models.notmad import NOTMAD

Edge = tuple[str, str]
DESIGN = 1024
"""Points of the training range on which the share of interactions is measured."""


class CovariateEffects(Networks):
    """Effect curves of `NOTMADFit`."""

    def covariate_effects(
        self,
        num_points: int = 50,
        covariates: Sequence[str] | None = None,
        *,
        at: Covariates | None = None,
        edges: Sequence[Edge] = (),
        num_samples: int = 400,
        interval: float = 0.9,
        scale: Scale = "fitted",
        seed: int = 0,
    ) -> xr.Dataset:
        """Curves over the training range of each covariate, the others held at given values, with intervals.

        The logit curve of covariate j is the logits of the archetypes as j alone moves, centred: over the grid, and
        over archetypes where the mixing does not see a common constant (all but ``identity``). With an additive encoder
        (gp, linear, nam) it is the contribution of the covariate, the same wherever the others are held, and logits =
        ``bias`` + sum of the curves of all covariates. With gp_joint covariates interact: the curve holds where the
        others are held (averaged over the cells of `at`: partial dependence), and ``interaction_share`` says how much
        of the variance of the logits no sum of curves can explain. The mixture and the edges are not additive under any
        encoder.

        Parameters
        ----------
        num_points
            Points of the grid of a number; a factor (indicators ``column[level]``) has a point for each level, a
            covariate of two values two points.
        covariates
            Names of those to move, factors by the name of their column; all if left out.
        at
            Cells that give the other covariates their values; curves are averaged over them, draw by draw. Left out:
            one cell with all of them at their training means.
        edges
            (regulator, target) of edges whose effect is wanted as well.
        num_samples, interval, seed
            As for `networks`.
        scale
            Of the edges, as for `networks`.

        Returns
        -------
        xr.Dataset
            ``logit``, ``mixture`` (point, archetype) and ``effect (point, edge)``: posterior means; with ``_lower`` and
            ``_upper``: their intervals; ``bias (archetype)``. Coordinates of a point: ``of`` (the covariate), ``value``
            (its number; NaN for a factor), ``level`` (of a factor), ``discrete``. Attributes: ``additive`` (1 or 0),
            ``interaction_share``, ``interval``.

        Raises
        ------
        DataError
            If a covariate or a gene is unknown, or an option is out of range.
        """
        check_interval(interval)
        check_scale(scale)
        if num_points < 2:
            raise DataError(f"num_points: found {num_points}; wanted at least 2")
        encoder, values = self.model.encoder, self._values(num_samples, seed)
        others = encoder.location.cpu().numpy()[None] if at is None else self._covariates(at)[0]
        axes = self._axes(covariates, num_points)
        curves = _Curves(self.model, values, others, self._pairs(edges), seed)
        logits, mixture, effects = [], [], []
        common = curves.mean(others, curves.logits).unsqueeze(1)  # (draw, 1, archetype)
        bias = common
        for axis in axes:
            moved = curves.along(axis, curves.logits) - common
            middle = moved.mean(1, keepdim=True)
            bias = bias + middle
            logits.append(moved - middle)
            mixture.append(curves.along(axis, curves.mixture))
            if edges:
                effects.append(curves.along(axis, curves.edges))
        found = {"logit": (logits, "archetype"), "mixture": (mixture, "archetype"), "effect": (effects, "edge")}
        result = xr.Dataset(coords=_coordinates(axes))
        factor = self._edge_factor(edges, scale)
        for name, (parts, dim) in found.items():
            if parts:
                draws = torch.cat(parts, 1).cpu().numpy() * (factor if dim == "edge" else 1.0)
                low, high = quantiles_of(draws, tails(interval))
                for suffix, value in (("", draws.mean(0)), ("_lower", low), ("_upper", high)):
                    result[name + suffix] = (("point", dim), value)
        result["bias"] = ("archetype", bias.mean((0, 1)).cpu().numpy())
        if edges:
            result = result.assign_coords(
                regulator=("edge", [a for a, _ in edges]),
                target=("edge", [b for _, b in edges]),
                edge=[f"{a} → {b}" for a, b in edges],
            )
        share = 0.0 if is_additive(encoder) else interaction_share(self.model, self._axes(None, 2), values)
        return result.assign_attrs(
            additive=int(is_additive(encoder)),
            interaction_share=share,
            interval=interval,
            num_cells_averaged=len(others),
        )

    def _axes(self, wanted: Sequence[str] | None, num_points: int) -> list[Axis]:
        encoder = self.model.encoder
        names = self.covariate_names
        low, high = encoder.lowest.cpu().numpy(), encoder.highest.cpu().numpy()
        two = encoder.two_valued.cpu().numpy()
        groups = factors_of(names)
        chosen = list(groups) if wanted is None else list(wanted)
        unknown = [name for name in chosen if name not in groups]
        if unknown or not chosen:
            raise DataError(f"covariates: found {listed(chosen)}; wanted some of {listed(groups, 20)}")
        axes = []
        for name in chosen:
            columns = np.asarray(groups[name])
            if names[columns[0]] != name:
                levels = [names[i][len(name) + 1 : -1] for i in columns]
                axes.append(Axis(name, columns, np.eye(len(columns)), levels))
                continue
            j = columns[0]
            count = 1 if low[j] == high[j] else 2 if two[j] else num_points
            axes.append(Axis(name, columns, np.linspace(low[j], high[j], count)[:, None], None, bool(two[j])))
        return axes

    def _pairs(self, edges: Sequence[Edge]) -> Int[np.ndarray, "end edge"]:
        place = {str(name): i for i, name in enumerate(self.gene_names)}
        if isinstance(edges, str) or any(isinstance(edge, str) or len(edge) != 2 for edge in edges):
            raise DataError(f"edges: found {edges!r}; wanted a list of pairs (regulator, target)")
        unknown = [gene for edge in edges for gene in edge if gene not in place]
        if unknown:
            raise DataError(f"edges: found genes {listed(unknown)}; wanted some of {listed(place)}")
        return np.array([[place[a], place[b]] for a, b in edges], dtype=int).reshape(-1, 2).T

    def _edge_factor(self, edges: Sequence[Edge], scale: Scale) -> Float[np.ndarray, " edge"]:
        a, b = self._pairs(edges)
        size = self.standardizer.scale if scale == "original" else np.ones(len(self.gene_names))
        return size[b] / size[a]


@dataclass(frozen=True)
class Axis:
    """The points of one covariate.

    Attributes
    ----------
    name
        The covariate.
    columns
        Its encoded columns.
    points
        Their values at every point.
    levels
        Names of the points of a factor.
    discrete
        Whether nothing lies between the points.
    """

    name: str
    columns: Int[np.ndarray, " column"]
    points: Float[np.ndarray, "point column"]
    levels: list[str] | None = None
    discrete: bool = False


@dataclass(frozen=True)
class _Curves:
    """Answers of the model, averaged over the cells that hold the other covariates."""

    model: NOTMAD
    values: Values
    others: Float[np.ndarray, "cell covariate"]
    pairs: Int[np.ndarray, "end edge"]
    seed: int

    def along(self, axis: Axis, answer: Callable[[np.ndarray], Tensor]) -> Float[Tensor, "draw point quantity"]:
        """Means over the cells at every point of an axis."""
        found = []
        for point in axis.points:
            table = self.others.copy()
            table[:, axis.columns] = point
            found.append(self.mean(table, answer))
        return torch.stack(found, 1)

    def mean(self, table: np.ndarray, answer: Callable[[np.ndarray], Tensor]) -> Float[Tensor, "draw quantity"]:
        """Mean answer over the rows of a table, some rows at a time."""
        sums = [answer(table[cells]).sum(1) for cells in pieces(len(table), mixture_size(self.model, self.values))]
        return torch.stack(sums).sum(0) / len(table)

    def logits(self, table: np.ndarray) -> Float[Tensor, "draw cell archetype"]:
        """Logits, relative to their mean over archetypes where that is all that matters."""
        eta = logits_of(self.model, table, self.values)
        return eta if self.model.mixing == "identity" else eta - eta.mean(-1, keepdim=True)

    def mixture(self, table: np.ndarray) -> Float[Tensor, "draw cell archetype"]:
        """Archetype weights."""
        return mixture_of(self.model, table, self.values, self.seed)

    def edges(self, table: np.ndarray) -> Float[Tensor, "draw cell edge"]:
        """Effects of the chosen edges."""
        a, b = self.pairs
        if self.model.form == "projected":
            return torch.cat([W[:, :, a, b] for _, W in whole(self.model, table, self.values, self.seed)], 1)
        return self.mixture(table) @ self.archetype_edges

    @cached_property
    def archetype_edges(self) -> Float[Tensor, "draw archetype edge"]:
        """W_k at the chosen edges."""
        a, b = self.pairs
        found = None
        for rows, W in archetype_rows(self.model, self.values):
            here = np.nonzero((a >= rows.start) & (a < rows.stop))[0]
            found = W.new_zeros(*W.shape[:2], len(a)) if found is None else found
            found[:, :, here] = W[:, :, a[here] - rows.start, b[here]]
        assert found is not None
        return found


def is_additive(encoder: Encoder) -> bool:
    """Whether every feature depends on one covariate alone, so that logits are a sum of curves."""
    return all(j >= 0 for j, _ in encoder.feature_names)


def interaction_share(model: NOTMAD, axes: Sequence[Axis], values: Values, num_draws: int = 20) -> float:
    """Share of the variance of the logits over the training range that no sum of curves explains, mean over draws.

    Measured at random points of the range, factors at random levels, against a regression on the basis of `GPEncoder`.
    """
    random, encoder = np.random.default_rng(0), model.encoder
    table = np.empty((DESIGN, encoder.num_covariates))
    for axis in axes:
        if axis.discrete or axis.levels is not None:
            table[:, axis.columns] = axis.points[random.integers(len(axis.points), size=DESIGN)]
        else:
            table[:, axis.columns] = random.uniform(axis.points[0], axis.points[-1], (DESIGN, len(axis.columns)))
    basis = GPEncoder(torch.as_tensor(table)).features(torch.as_tensor(table), {}).numpy()
    total = num_draws_of(values)
    keep = np.linspace(0, total - 1, min(total, num_draws)).round().astype(int)
    eta = logits_of(model, table, {name: value[keep] for name, value in values.items()}).cpu().double().numpy()
    eta = eta - eta.mean(-1, keepdims=True) if model.mixing != "identity" else eta
    eta = np.concatenate(eta - eta.mean(1, keepdims=True), -1)  # (cell, draw x archetype)
    basis = np.concatenate([basis, np.ones((DESIGN, 1))], 1)
    rest = eta - basis @ np.linalg.lstsq(basis, eta, rcond=None)[0]
    variance = float((eta**2).sum())
    spare = DESIGN / max(1, DESIGN - int(np.linalg.matrix_rank(basis)))  # what the regression explains by chance
    return min(1.0, float((rest**2).sum()) * spare / variance) if variance > 0 else 0.0


def logits_of(
    model: NOTMAD, table: Float[np.ndarray, "cell covariate"], values: Values
) -> Float[Tensor, "draw cell archetype"]:
    """Logits of the archetypes in every draw."""
    with torch.no_grad():
        return model.encoder(as_input(model, table), values)


def _coordinates(axes: Sequence[Axis]) -> dict[str, tuple[str, np.ndarray]]:
    of = [axis.name for axis in axes for _ in axis.points]
    numbers = [
        value for a in axes for value in (a.points[:, 0] if a.levels is None else np.full(len(a.points), np.nan))
    ]
    levels = [level for axis in axes for level in (axis.levels or [""] * len(axis.points))]
    discrete = [axis.discrete or axis.levels is not None for axis in axes for _ in axis.points]
    return {
        "of": ("point", np.asarray(of, dtype=str)),
        "value": ("point", np.asarray(numbers)),
        "level": ("point", np.asarray(levels, dtype=str)),
        "discrete": ("point", np.asarray(discrete)),
    }
