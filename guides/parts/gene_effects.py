"""Closed-form posterior of direct effects on genes, from one Newton step of the likelihood.

Given everything else, the likelihood of an effect beta_eg is close to Normal(b; beta, 1/I), with the information I and
b = beta + score / I from sums over the cells of the environment. The posterior under a mixture of an atom at zero and
Normals is then again such a mixture, and the weights of the prior come from all entries by EM (Stephens 2017, "False
discovery rates: a new deal", Biostatistics).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ...models.parts.errors import DataError, NumericalError
from ...models.parts.gene_effects import AtomNormalMixture, GeneEffects

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["EffectStatistics", "GeneEffectsPosterior", "mixture_evidence", "mixture_posterior", "mixture_weights"]

MAX_STEP = 1.0
"""Largest step of an estimate: the quadratic form of the log-likelihood is local."""


@dataclass
class EffectStatistics:
    """Score and information of the effects, summed over cells; empty at first, filled chunk by chunk.

    Attributes
    ----------
    score, information
        First and minus the expected second derivative of the log-likelihood with respect to each effect, float64.
    """

    score: Float[Tensor, "condition gene"]
    information: Float[Tensor, "condition gene"]

    @classmethod
    def empty(cls, num_environments: int, num_genes: int, *, device: torch.device | None = None) -> EffectStatistics:
        """No cells so far."""
        score, information = torch.zeros(2, num_environments, num_genes, dtype=torch.float64, device=device)
        return cls(score, information)

    def add_counts(
        self,
        x: Float[Tensor, "cell gene"],
        mean: Float[Tensor, "cell gene"],
        environment: Int[Tensor, " cell"],
        inverse_dispersion: Float[Tensor, " gene"] | float = float("inf"),
    ) -> None:
        """Add cells with negative binomial counts, log mean = beta + ..., variance mean + mean^2 / inverse_dispersion.

        With w = 1 / (1 + mean / inverse_dispersion), the score is the sum of (x - mean) w and the information that of
        mean w. Poisson counts have an infinite `inverse_dispersion`, the default.
        """
        mean = mean.detach().double()
        if not isinstance(inverse_dispersion, float):
            inverse_dispersion = inverse_dispersion.detach().double()
        weight = 1 / (1 + mean / inverse_dispersion)
        self.score.index_add_(0, environment, (x.double() - mean) * weight)
        self.information.index_add_(0, environment, mean * weight)

    def add_gaussian(
        self,
        x: Float[Tensor, "cell gene"],
        mean: Float[Tensor, "cell gene"],
        environment: Int[Tensor, " cell"],
        scale: Float[Tensor, " gene"] | float,
    ) -> None:
        """Add cells with Gaussian expression, mean = beta + ..., sd `scale`; the information is n / scale^2."""
        precision = torch.as_tensor(scale, dtype=torch.float64, device=self.score.device).detach() ** -2
        residual = x.double() - mean.detach().double()
        self.score.index_add_(0, environment, residual * precision)
        self.information.index_add_(0, environment, precision.expand_as(residual))

    def estimate(
        self, current: Float[Tensor, "condition gene"], max_step: float = MAX_STEP
    ) -> Float[Tensor, "condition gene"]:
        """One step of Fisher scoring from the current effects, b = beta + score / information.

        Parameters
        ----------
        current
            The effects at which the means were computed.
        max_step
            Bound on the size of the step.

        Returns
        -------
        Float[Tensor, "condition gene"]
            Estimates b, float64; the current ones where there is no information.
        """
        known = self.information > 0
        step = torch.where(known, self.score / torch.where(known, self.information, 1.0), 0.0)
        return current.detach().double() + step.clamp(-max_step, max_step)


def mixture_posterior(
    estimate: Float[Tensor, "*b"],
    information: Float[Tensor, "*b"],
    weights: Float[Tensor, " component"],
    scales: Float[Tensor, " normal"],
) -> AtomNormalMixture:
    """Posterior of effects with prior pi_0 delta_0 + sum_c pi_c Normal(0, s_c^2) and likelihood Normal(b; beta, 1/I).

    Parameters
    ----------
    estimate, information
        b and I; where I = 0 the prior is returned.
    weights, scales
        pi, the atom first, and s.

    Returns
    -------
    AtomNormalMixture
        Independent entries, in the dtype of `estimate`, which float64 is good for.
    """
    log_joint = _log_ratios(estimate, information, scales) + weights.log()
    gain = 1 + information.unsqueeze(-1) * scales**2
    loc = (1 - 1 / gain) * estimate.unsqueeze(-1)
    return AtomNormalMixture(log_joint.softmax(-1), loc, scales / gain.sqrt(), validate_args=False)


def mixture_evidence(
    estimate: Float[Tensor, "*b"],
    information: Float[Tensor, "*b"],
    weights: Float[Tensor, " component"],
    scales: Float[Tensor, " normal"],
) -> Float[Tensor, "*b"]:
    """Log of p(b) relative to Normal(b; 0, 1/I), its density without an effect; arguments of `mixture_posterior`."""
    return (_log_ratios(estimate, information, scales) + weights.log()).logsumexp(-1)


def mixture_weights(
    estimate: Float[Tensor, "*b"],
    information: Float[Tensor, "*b"],
    scales: Float[Tensor, " normal"],
    concentration: Float[Tensor, " component"],
    *,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
) -> Float[Tensor, " component"]:
    """Weights pi of the mixture by EM, at the mode of their posterior under a Dirichlet prior.

    Parameters
    ----------
    estimate, information
        b and I of the entries that share the weights; no entry raises or lowers the objective where I = 0.
    scales
        s of the Normals.
    concentration
        Of the Dirichlet, at least 1; its excess over 1 counts as so many entries.
    max_iterations, tolerance
        Stop after so many iterations, or when no weight changes by more than `tolerance`.

    Returns
    -------
    Float[Tensor, " component"]
        Weights, the atom first. Every iteration raises the log posterior density of the weights, which is concave.
    """
    log_ratios = _log_ratios(estimate, information, scales).flatten(0, -2)
    ratios = (log_ratios - log_ratios.amax(-1, keepdim=True)).exp()
    excess = concentration - 1
    weights = concentration / concentration.sum()
    for _ in range(max_iterations):
        counts = weights * (ratios.T @ (1 / (ratios @ weights))) + excess
        before, weights = weights, counts / counts.sum()
        if (weights - before).abs().max() < tolerance:
            break
    return weights


def _log_ratios(estimate: Tensor, information: Tensor, scales: Tensor) -> Float[Tensor, "*b component"]:
    """Log density of b under each component relative to the atom's, Normal(b; 0, s^2 + 1/I) / Normal(b; 0, 1/I)."""
    gain = 1 + information.unsqueeze(-1) * scales**2
    normal = 0.5 * (information * estimate**2).unsqueeze(-1) * (1 - 1 / gain) - 0.5 * gain.log()
    return torch.cat([torch.zeros_like(normal[..., :1]), normal], -1)


class GeneEffectsPosterior(nn.Module):
    """q of the gene effects: a mixture of an atom and Normals for every entry, and a point mass at the weights.

    Parameters
    ----------
    prior
        The prior. Before the first `update` there is no information: q of the effects is the prior at the mean of the
        weights.
    """

    estimate: Tensor
    information: Tensor
    weights: Tensor
    scales: Tensor
    is_control: Tensor
    effects: Tensor
    divergence: Tensor

    def __init__(self, prior: GeneEffects) -> None:
        super().__init__()
        zeros = prior.scales.new_zeros(prior.num_environments, prior.num_genes)
        self.register_buffer("estimate", zeros)
        self.register_buffer("information", zeros.clone())
        self.register_buffer("weights", prior.concentration / prior.concentration.sum())
        self.register_buffer("scales", prior.scales.clone())
        self.register_buffer("is_control", prior.is_control.clone())
        self.register_buffer("effects", zeros.clone())
        self.register_buffer("divergence", torch.zeros((), dtype=zeros.dtype))
        self._summarise(prior)

    def law(self) -> AtomNormalMixture:
        """Posterior of every effect, batch shape (condition, gene), float64; the control's row is zero."""
        q = mixture_posterior(self.estimate.double(), self.information.double(), *self._prior())
        null = torch.zeros_like(q.weights)
        null[..., 0] = 1
        weights = torch.where(self.is_control[:, None, None], null, q.weights)
        return AtomNormalMixture(weights, q.loc, q.scale, validate_args=False)

    def forward(self, prior: GeneEffects) -> None:
        """Draw the sites."""
        q = self.law()
        weights, loc, scale = (part.to(self.estimate.dtype) for part in (q.weights, q.loc, q.scale))
        pyro.sample("gene_effect_weights", dist.Delta(self.weights, event_dim=1))
        pyro.sample("gene_effects", AtomNormalMixture(weights, loc, scale).to_event(2))

    def mean(self) -> Float[Tensor, "condition gene"]:
        """Posterior means as of the last update: a copy, which the next one leaves alone."""
        return self.effects.clone()

    def variance(self) -> Float[Tensor, "condition gene"]:
        """Posterior variances."""
        return self.law().variance.to(self.estimate.dtype)

    def effect_probability(self) -> Float[Tensor, "condition gene"]:
        """Posterior probabilities that an effect is not zero."""
        return (1 - self.law().weights[..., 0]).to(self.estimate.dtype)

    def kl(self, prior: GeneEffects) -> Float[Tensor, ""]:
        """KL of the effects given the weights, minus the log prior density of the weights; nats, as of the last update.

        Exact: q is the posterior under the likelihood Normal(b; beta, 1/I), so that the KL is the mean of its log minus
        the log evidence.
        """
        return self.divergence

    @torch.no_grad()
    def _summarise(self, prior: GeneEffects) -> None:
        b, information = self.estimate.double(), self.information.double()
        q = self.law()
        expected = information * (b * q.mean - 0.5 * (q.variance + q.mean**2))
        effects = (expected - mixture_evidence(b, information, *self._prior()))[~self.is_control].sum()
        weights = dist.Dirichlet(prior.concentration.double(), validate_args=False).log_prob(self.weights.double())
        self.effects.copy_(q.mean)
        self.divergence.copy_(effects - weights)

    @torch.no_grad()
    def update(
        self,
        prior: GeneEffects,
        estimate: Float[Tensor, "condition gene"],
        information: Float[Tensor, "condition gene"],
    ) -> None:
        """Learn the weights and take the posterior of every effect.

        Parameters
        ----------
        prior
            Gives the pseudo-counts and scales.
        estimate, information
            b and I, as `EffectStatistics` gives them. The rows of the control are not read.

        Raises
        ------
        DataError
            If shapes are wrong or an information is negative.
        NumericalError
            If a number is not finite.
        """
        for name, value in (("estimate", estimate), ("information", information)):
            if value.shape != self.estimate.shape:
                raise DataError(f"{name}: found shape {tuple(value.shape)}; wanted {tuple(self.estimate.shape)}")
            if not value.isfinite().all():
                raise NumericalError(f"gene_effects: found NaN or infinite {name}; wanted finite numbers")
        if (information < 0).any():
            raise DataError("information: found negative numbers; wanted numbers from 0")
        self.estimate.copy_(estimate.masked_fill(self.is_control[:, None], 0))
        self.information.copy_(information.masked_fill(self.is_control[:, None], 0))
        b, known = self.estimate.double(), self.information.double()
        weights = mixture_weights(b, known, prior.scales.double(), prior.concentration.double())
        self.weights.copy_(weights)
        self._summarise(prior)

    def _prior(self) -> tuple[Tensor, Tensor]:
        weights = self.weights.double()
        return weights / weights.sum(), self.scales.double()  # single precision sums to one but for 1e-7
