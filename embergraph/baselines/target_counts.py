"""Negative binomial counts of known library size: one rate for all cells, or one for each perturbation.

x_ig ~ NB(mean = l_i r_eg, variance = mean + mean^2 / theta_g). Genes are independent given the environment: cells of
one environment differ by their library size alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import xarray as xr
from scipy.stats import nbinom
from torch import Tensor

from ..guides.parts.gene_effects import EffectStatistics, GeneEffectsPosterior
from ..models.parts.errors import DataError
from ..models.parts.gene_effects import GeneEffects
from ..validation import listed, validate
from .base import expression_of
from .environments import EnvironmentBaseline, FittedEnvironmentBaseline, genes_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

__all__ = ["FittedCounts", "PooledNegativeBinomial", "TargetNegativeBinomial", "inverse_dispersion"]

Rates = Literal["likelihood", "totals"]
NONE_SEEN = 0.5
"""Counts that stand for none, so that no held-out cell is impossible."""
_MAX_SWEEPS, _ROUNDS, _TOLERANCE = 50, 3, 1e-5
_LOG_BOUNDS = (-7.0, 8.0)
_GENES_AT_ONCE, _CELLS_AT_ONCE = 64, 4096


@dataclass(frozen=True)
class FittedCounts(FittedEnvironmentBaseline):
    """Fitted rates.

    Attributes
    ----------
    conditions
        Names of the environments.
    control
        Position of the control, if there is one.
    log_rates
        log r, natural, per unit of library size; those of the base where an environment has no training cells.
    log_base
        log r of the control, or of an environment without effects where there is no control.
    theta
        Inverse dispersions.
    probability
        Posterior probability that an effect is not zero, where effects are shrunk.
    """

    genes: tuple[str, ...]
    conditions: Shaped[np.ndarray, " condition"]
    control: int | None
    log_rates: Float[np.ndarray, "condition gene"]
    log_base: Float[np.ndarray, " gene"]
    theta: Float[np.ndarray, " gene"]
    probability: Float[np.ndarray, "condition gene"] | None = None

    def effects(self) -> xr.Dataset:
        """Tell what the environments do to the genes.

        Returns
        -------
        xr.Dataset
            ``log2_fold_change (condition, gene)`` to the control, zero for environments without training cells;
            ``effect_probability`` of those dims where effects are shrunk.
        """
        dims = ("condition", "gene")
        variables = {"log2_fold_change": (dims, (self.log_rates - self.log_base) / np.log(2))}
        if self.probability is not None:
            variables["effect_probability"] = (dims, self.probability)
        return xr.Dataset(variables, {"condition": self.conditions, "gene": np.asarray(self.genes)})

    def _mean(self, data: xr.Dataset) -> Float[np.ndarray, "cell gene"]:
        codes, library = _codes(data), _library(data)
        names = np.asarray(data["condition"].to_numpy())
        if not np.array_equal(names, self.conditions):
            raise DataError(f"condition: found {listed(names)}; wanted those of training, {listed(self.conditions)}")
        return library[:, None] * np.exp(self.log_rates[codes])

    def _log_density(self, data: xr.Dataset, x: Float[np.ndarray, "cell gene"]) -> Float[np.ndarray, " cell"]:
        _check_counts(x)
        mean = self._mean(data)
        return nbinom.logpmf(x, self.theta, self.theta / (self.theta + mean)).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class PooledNegativeBinomial(EnvironmentBaseline):
    """One rate and one dispersion per gene for all cells: no environment, no latent.

    Attributes
    ----------
    rates
        ``"likelihood"``: rates at the maximum of the likelihood, which trusts cells of a large library less than their
        share of the counts. ``"totals"``: counts over library sizes; cells are then predicted worse.
    """

    rates: Rates = "likelihood"

    def __post_init__(self) -> None:
        _check_rates(self.rates)

    def fit(self, train: xr.Dataset) -> FittedCounts:
        """Fit to ``expression`` (counts), ``library (cell)``, ``environment``; see `EnvironmentBaseline.fit`."""
        counts = _Counts.read(train)
        log_rate, theta = counts.pooled().fit_rates(self.rates)
        return counts.fitted(train, None, log_rate.expand(counts.num_groups, -1), log_rate[0], theta)


@dataclass(frozen=True, kw_only=True)
class TargetNegativeBinomial(EnvironmentBaseline):
    """One rate per perturbation and gene, dispersions shared by all cells.

    Attributes
    ----------
    shrink
        Effects beta on the log rate, relative to the control, have the prior of `GeneEffects`, a mixture of an atom at
        zero and Normals with learned weights; their posterior means are used. Otherwise every rate is free.
    rates
        As for `PooledNegativeBinomial`; ``"totals"``, the empirical profile, goes without shrinkage only.
    control
        Label of the control among the conditions. None: effects are relative to the pooled rate, or to the best common
        rate where they are shrunk.
    """

    shrink: bool = True
    rates: Rates = "likelihood"
    control: str | None = "control"

    def __post_init__(self) -> None:
        _check_rates(self.rates)
        if self.shrink and self.rates == "totals":
            raise DataError("rates: found 'totals' with shrink=True; wanted 'likelihood', or shrink=False")

    def fit(self, train: xr.Dataset) -> FittedCounts:
        """Fit to ``expression`` (counts), ``library (cell)``, ``environment``; see `EnvironmentBaseline.fit`."""
        counts = _Counts.read(train)
        control = None if self.control is None else counts.position(train, self.control)
        if self.shrink:
            base, posterior, theta = counts.fit_shrunk(control)
            probability = posterior.effect_probability()
            return counts.fitted(train, control, base + posterior.mean(), base, theta, probability)
        log_rates, theta = counts.fit_rates(self.rates)
        base = counts.pooled().fit_rates(self.rates)[0][0] if control is None else log_rates[control]
        return counts.fitted(train, control, log_rates, base, theta)


@dataclass(frozen=True)
class _Counts:
    """Counts as tensors, float64, and the group that each cell is in."""

    x: Float[Tensor, "cell gene"]
    library: Float[Tensor, " cell"]
    group: Int[Tensor, " cell"]
    num_groups: int

    @classmethod
    def read(cls, train: xr.Dataset) -> _Counts:
        validate(train, min_cells=1)
        codes, library, x = _codes(train), _library(train), expression_of(train)
        _check_counts(x)
        return cls(torch.from_numpy(x), torch.from_numpy(library), torch.from_numpy(codes), train.sizes["condition"])

    def position(self, train: xr.Dataset, control: str) -> int:
        """Position of the control, which has cells."""
        names = list(train["condition"].to_numpy())
        if control not in names:
            raise DataError(f"control: found {control!r}; wanted one of the conditions, {listed(names)}")
        position = names.index(control)
        if not (self.group == position).any():
            raise DataError(f"control: found no training cells of {control!r}; wanted some")
        return position

    def pooled(self) -> _Counts:
        """All cells as one group."""
        return _Counts(self.x, self.library, torch.zeros_like(self.group), 1)

    def fit_rates(self, rates: Rates) -> tuple[Float[Tensor, "group gene"], Float[Tensor, " gene"]]:
        """Free log rates of all groups, and inverse dispersions."""
        shape = (self.num_groups, self.x.shape[1])
        totals = torch.zeros(shape, dtype=torch.float64).index_add_(0, self.group, self.x).clamp(min=NONE_SEEN)
        library = torch.zeros(self.num_groups, dtype=torch.float64).index_add_(0, self.group, self.library)
        library = torch.where(library > 0, library, self.library.sum())[:, None]
        log_rates, least = (totals / library).log(), (NONE_SEEN / library).log()
        theta = self.inverse_dispersion(log_rates)
        for _ in range(_ROUNDS if rates == "likelihood" else 0):
            for _ in range(_MAX_SWEEPS):
                before, estimate = log_rates, self.statistics(log_rates, theta).estimate(log_rates)
                log_rates = torch.maximum(estimate, least)
                if (log_rates - before).abs().max() < _TOLERANCE:
                    break
            theta = self.inverse_dispersion(log_rates)
        return log_rates, theta

    def fit_shrunk(self, control: int | None) -> tuple[Tensor, GeneEffectsPosterior, Tensor]:
        """Log rates without effect, the posterior of effects, and inverse dispersions."""
        start, theta = self.pooled().fit_rates("likelihood")
        prior = GeneEffects(self.num_groups, self.x.shape[1], control).double()
        posterior = GeneEffectsPosterior(prior)
        base, effects = start[0], torch.zeros(self.num_groups, self.x.shape[1], dtype=torch.float64)
        for _ in range(_ROUNDS):
            for _ in range(_MAX_SWEEPS):
                at_base = self.statistics(base + effects, theta)
                step = at_base.score.sum(0) / at_base.information.sum(0)
                base = base + step.clamp(-1, 1)
                statistics = self.statistics(base + effects, theta)
                posterior.update(prior, statistics.estimate(effects), statistics.information)
                before, effects = effects, posterior.mean()
                if (effects - before).abs().max() < _TOLERANCE:
                    break
            theta = self.inverse_dispersion(base + effects)
        return base, posterior, theta

    def statistics(self, log_rates: Float[Tensor, "group gene"], theta: Float[Tensor, " gene"]) -> EffectStatistics:
        """Score and information of the log rates."""
        sums = EffectStatistics.empty(self.num_groups, self.x.shape[1])
        rates = log_rates.exp()
        for rows in torch.arange(len(self.x)).split(_CELLS_AT_ONCE):
            mean = self.library[rows, None] * rates[self.group[rows]]
            sums.add_counts(self.x[rows], mean, self.group[rows], theta)
        return sums

    def inverse_dispersion(self, log_rates: Float[Tensor, "group gene"]) -> Float[Tensor, " gene"]:
        """Inverse dispersions at the maximum of the likelihood."""
        parts = []
        for genes in torch.arange(self.x.shape[1]).split(_GENES_AT_ONCE):
            mean = self.library[:, None] * log_rates[:, genes].exp()[self.group]
            parts.append(inverse_dispersion(self.x[:, genes], mean))
        return torch.cat(parts)

    def fitted(
        self,
        train: xr.Dataset,
        control: int | None,
        log_rates: Float[Tensor, "group gene"],
        base: Float[Tensor, " gene"],
        theta: Float[Tensor, " gene"],
        probability: Float[Tensor, "group gene"] | None = None,
    ) -> FittedCounts:
        """Put names to numbers; groups without cells have the base rates."""
        seen = torch.bincount(self.group, minlength=self.num_groups) > 0
        log_rates = torch.where(seen[:, None], log_rates, base)
        return FittedCounts(
            genes_of(train),
            train["condition"].to_numpy(),
            control,
            log_rates.numpy(),
            base.numpy(),
            theta.numpy(),
            None if probability is None else torch.where(seen[:, None], probability, 0.0).numpy(),
        )


def inverse_dispersion(
    x: Float[Tensor, "cell gene"], mean: Float[Tensor, "cell gene"], *, num_steps: int = 50
) -> Float[Tensor, " gene"]:
    """Inverse dispersions theta of negative binomial counts with known means, at the maximum of the likelihood.

    Parameters
    ----------
    x, mean
        Counts and their means, float64.
    num_steps
        Newton steps on log theta, at most.

    Returns
    -------
    Float[Tensor, " gene"]
        From exp(-7) to exp(8); genes that vary no more than Poisson counts come out at the upper end.
    """
    log_theta = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(num_steps):
        theta = log_theta.exp()
        both = theta + mean
        slope = torch.digamma(x + theta) - torch.digamma(theta) + torch.log(theta / both) + (mean - x) / both
        bend = torch.polygamma(1, x + theta) - torch.polygamma(1, theta) + 1 / theta - 1 / both - (mean - x) / both**2
        first = slope.sum(0) * theta
        second = bend.sum(0) * theta**2 + first
        step = torch.where(second < 0, -first / second, first.sign()).clamp(-1, 1)
        before, log_theta = log_theta, (log_theta + step).clamp(*_LOG_BOUNDS)
        if (log_theta - before).abs().max() < _TOLERANCE:
            break
    return log_theta.exp()


def _check_rates(rates: Rates) -> None:
    if rates not in get_args(Rates):
        raise DataError(f"rates: found {rates!r}; wanted one of {listed(get_args(Rates))}")


def _check_counts(x: Float[np.ndarray, "cell gene"]) -> None:
    if (x < 0).any() or (x != np.floor(x)).any():
        raise DataError("expression: found numbers that are no counts; wanted 0, 1, 2, ...")


def _codes(data: xr.Dataset) -> Int[np.ndarray, " cell"]:
    if "environment" not in data or "condition" not in data.sizes:
        raise DataError(f"environment: found {listed(data.variables)}; wanted environment (cell) and its conditions")
    return data["environment"].to_numpy().astype(np.int64)


def _library(data: xr.Dataset) -> Float[np.ndarray, " cell"]:
    if "library" not in data or data["library"].dims != ("cell",):
        raise DataError(f"library: found variables {listed(data.variables)}; wanted library (cell), total counts")
    library = data["library"].to_numpy().astype(np.float64)
    if not (np.isfinite(library) & (library > 0)).all():
        raise DataError("library: found zero, negative, infinite or missing sizes; wanted positive numbers")
    return library
