"""E-step of MED-MAGMA: the posterior of all sets of scales given the graphs, and their spreads given the scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ...models.med_magma import MEDMAGMA
from ...models.parts.errors import DataError
from ...models.parts.priors import Prior
from ...models.parts.scale_priors import NormalScales, ScalePrior, StudentScales
from .joint_scales import JointScales
from .log_scale_family import LogScales, settled
from .log_scale_moments import elbo, mean_field, moments, variational
from .log_scale_target import ScaleTarget, gram
from .log_scales import laplace, mode

if TYPE_CHECKING:
    from jaxtyping import Float

EStep = Literal["laplace", "variational", "mean_field"]
Pair = tuple[Tensor, Tensor]
SMALLEST, LARGEST = 1e-4, 1e2  # spreads of log scales that are told apart


class ScaleProblem:
    """All matrices of the data, and what the posterior of their scales needs beside the graphs.

    Parameters
    ----------
    model
        Priors of the scales and the convention for zeros.
    expression
        The data.
    point
        Holds the current spreads ``tau_u``, ``tau_v`` and stretches.
    """

    def __init__(
        self, model: MEDMAGMA, expression: Float[Tensor, "*replicate cell gene"], point: torch.nn.Module
    ) -> None:
        if expression.dtype != torch.double:
            raise DataError(f"expression: found {expression.dtype}; wanted float64, which the scales need")
        stacked = expression if expression.dim() == 3 else expression.unsqueeze(0)
        self.sets: Sequence[Tensor] = [stacked] if model.shared_scales and len(stacked) > 1 else list(stacked)
        structural = model.zeros == "structural"
        self.about: list[dict[str, Any]] = [
            {"counts": _non_zeros(Y) if structural else None, "penalty": _penalty(model, point, k)}
            for k, Y in enumerate(self.sets)
        ]

    def modes(self, Psi_1: Tensor, Psi_2: Tensor, near: JointScales | None = None) -> list[Pair]:
        """Mode of each set of scales, searched from where `near` stands, if given."""
        starts = [None if near is None else near.start(k) for k in range(len(self.sets))]
        together = zip(self.sets, starts, self.about, strict=True)
        return [mode(Y, Psi_1, Psi_2, start=start, **about) for Y, start, about in together]

    def gaussians(self, modes: Sequence[Pair], Psi_1: Tensor, Psi_2: Tensor, e_step: EStep) -> list[LogScales]:
        """Gaussian around each mode."""
        found = []
        for Y, (a, b), about in zip(self.sets, modes, self.about, strict=True):
            fit = mean_field if e_step == "mean_field" else laplace
            scales = fit(Y, Psi_1, Psi_2, a, b, **about)
            found.append(variational(Y, Psi_1, Psi_2, scales, **about) if e_step == "variational" else scales)
        return found

    def moments(
        self, fitted: Sequence[LogScales]
    ) -> tuple[Float[Tensor, "cell cell_other"], Float[Tensor, "gene gene_other"]]:
        """E[Z Z^T] and E[Z^T Z], means over matrices."""
        return _mean_of([moments(Y, scales) for Y, scales in zip(self.sets, fitted, strict=True)])

    def moments_at(
        self, modes: Sequence[Pair]
    ) -> tuple[Float[Tensor, "cell cell_other"], Float[Tensor, "gene gene_other"]]:
        """Z Z^T and Z^T Z at the modes, means over matrices."""
        return _mean_of([(gram(Z) / _count(Z), gram(Z.mT) / _count(Z)) for Z in self.scaled(modes)])

    def scaled(self, modes: Sequence[Pair]) -> list[Float[Tensor, "*matrix cell gene"]]:
        """Z of each set at the mode."""
        return [_apply(Y, a, b) for Y, (a, b) in zip(self.sets, modes, strict=True)]

    def rescaled(self, fitted: Sequence[LogScales], Psi_1: Tensor, Psi_2: Tensor) -> list[LogScales]:
        """The same Gaussians with the overall scale that suits the graphs, E[q] = N."""
        together = zip(self.sets, fitted, self.about, strict=True)
        targets = [(ScaleTarget.of(Y, Psi_1, Psi_2, **about), scales) for Y, scales, about in together]
        return [settled(target, scales.mean, scales.spread) for target, scales in targets]

    def overall_shift(self, k: int, prior: Prior, scales: JointScales) -> float:
        """How far a prior moves log omega of the k-th set from where E[q] = N, the rest held.

        The likelihood in the shift d is N (d - e^d) / 2.
        """
        loc = scales.loc if scales.num_sets is None else scales.loc[k]
        now, law = float(scales.as_sites(loc)[2]), prior.expand(())
        counts = self.about[k]["counts"]
        size = float(counts[0].sum()) if counts is not None else self.sets[k].numel()

        def loss(shift: float) -> float:
            value = loc.new_tensor(now + shift)
            return -0.5 * size * (shift - math.exp(shift)) - float(law.log_prob(value))

        return float(minimize_scalar(loss, bounds=(-30.0, 30.0), method="bounded", options={"xatol": 1e-10}).x)

    def bounds(self, fitted: Sequence[LogScales], Psi_1: Tensor, Psi_2: Tensor) -> list[float]:
        """Evidence lower bound of each set given the graphs, up to a constant."""
        volume = log_det(Psi_1, Psi_2)
        together = zip(self.sets, fitted, self.about, strict=True)
        return [elbo(Y, Psi_1, Psi_2, scales, log_det=volume, **about) for Y, scales, about in together]


def _apply(Y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """diag(e^a) Y diag(e^b) by logarithms, since e^a alone may overflow."""
    return Y.sign() * (Y.abs().log() + a[:, None] + b).exp()


def _count(Z: Tensor) -> int:
    return len(Z) if Z.dim() == 3 else 1


def _mean_of(pairs: Sequence[Pair]) -> Pair:
    first, second = (torch.stack(parts).mean(0) for parts in zip(*pairs, strict=True))
    return first, second


def log_det(Psi_1: Float[Tensor, "n n"], Psi_2: Float[Tensor, "p p"]) -> float:
    """Log determinant of Omega."""
    sums = torch.linalg.eigvalsh(Psi_1)[:, None] + torch.linalg.eigvalsh(Psi_2)
    return float(sums.clamp(min=1e-300).log().sum())


def spread_points(model: MEDMAGMA) -> dict[str, list[int]]:
    """Spreads and stretches that the model's scale priors have, with their shapes."""
    outer = [] if model.shared_scales or model.num_replicates is None else [model.num_replicates]
    found: dict[str, list[int]] = {}
    for side, prior, size in _sides(model):
        if isinstance(prior, NormalScales):
            found[f"tau_{side}"] = []
        if isinstance(prior, StudentScales):
            found[f"stretch_{side}"] = [*outer, size]
    return found


def update_spreads(model: MEDMAGMA, point: torch.nn.Module, scales: JointScales) -> None:
    """Point estimates of stretches, then of tau, given the posterior of the log scales."""
    sites = scales.as_sites(scales.loc)[:2]
    for (side, prior, size), mean, variance in zip(_sides(model), sites, scales.site_variances(), strict=True):
        if not isinstance(prior, NormalScales):
            continue
        squares = mean.square() + variance
        tau = getattr(point, f"tau_{side}")
        if isinstance(prior, StudentScales):
            stretch = getattr(point, f"stretch_{side}")
            stretch.copy_((prior.df + squares / tau**2) / (prior.df + 3))  # mode of an InverseGamma
            squares = squares / stretch
        count = squares.numel() * (size - 1) / size
        tau.fill_(_best_spread(prior, tau, float(squares.sum()), count))


def log_prior_of_spreads(model: MEDMAGMA, point: torch.nn.Module) -> float:
    """Log density of the points of `update_spreads`."""
    total = 0.0
    for side, prior, _ in _sides(model):
        if not isinstance(prior, NormalScales):
            continue
        tau = getattr(point, f"tau_{side}")
        total += float(prior.spread.expand(()).log_prob(tau))
        if isinstance(prior, StudentScales):
            stretch = getattr(point, f"stretch_{side}")
            half = prior.df / 2
            total += float((-(half + 1.5) * stretch.log() - half / stretch).sum())
    return total


def log_normalisers(model: MEDMAGMA, point: torch.nn.Module) -> float:
    """Log of the factors in front of the Normals of one set of scales; flat ones have none."""
    total = 0.0
    for side, prior, size in _sides(model):
        if isinstance(prior, NormalScales):
            total -= (size - 1) * (math.log(float(getattr(point, f"tau_{side}"))) + 0.5 * math.log(2 * math.pi))
    return total


def _sides(model: MEDMAGMA) -> list[tuple[str, ScalePrior, int]]:
    return [("u", model.cell_scales, model.num_cells), ("v", model.gene_scales, model.num_genes)]


def _best_spread(prior: NormalScales, like: Tensor, squares: float, count: float) -> float:
    law = prior.spread.expand(())

    def loss(log_tau: float) -> float:
        tau = math.exp(log_tau)
        return count * log_tau + 0.5 * squares / tau**2 - float(law.log_prob(like.new_tensor(tau)))

    bounds = (math.log(SMALLEST), math.log(LARGEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x)


def _penalty(model: MEDMAGMA, point: torch.nn.Module, k: int) -> tuple[Tensor, Tensor] | None:
    """Precisions of a and b that Normal log scales with sum zero amount to; None when both are flat."""
    found = []
    for side, prior, size in _sides(model):
        weights = torch.zeros(size, dtype=torch.double, device=model.unit.device)
        if isinstance(prior, NormalScales):
            weights = weights + getattr(point, f"tau_{side}").double() ** -2
            if isinstance(prior, StudentScales):
                stretch = getattr(point, f"stretch_{side}")
                weights = weights / (stretch[k] if stretch.dim() == 2 else stretch)
        found.append(_centred(weights))
    flat = all(not bool(matrix.any()) for matrix in found)
    return None if flat else (found[0], found[1])


def _centred(weights: Float[Tensor, " node"]) -> Float[Tensor, "node node_other"]:
    """C diag(weights) C with C = I - 1 1^T / size."""
    matrix = weights.diag()
    matrix = matrix - matrix.mean(0)
    return matrix - matrix.mean(1, keepdim=True)


def _non_zeros(Y: Float[Tensor, "*replicate cell gene"]) -> tuple[Tensor, Tensor]:
    present = (Y != 0).double().reshape(-1, *Y.shape[-2:]).sum(0)
    return present.sum(1), present.sum(0)
