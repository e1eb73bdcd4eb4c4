"""Exact guide of a linear Gaussian Environment VAE: latents are integrated out, nothing is amortised.

    q(effects) prod_i p(z_i | x_i, effects),   decoder and noise as point masses

Given the shifts of the environments, the posterior of a cell's latents is Normal and is used as it is, so that the
bound is that of the marginal law of expression. `update` is one sweep over targets and sizes, their hyperparameters,
decoder and noise, each in closed form from sums over the cells of an environment: after the first sweep time and memory
do not depend on the number of cells, and no sweep lowers the bound. Sizes are drawn with variances that know that the
latent axes are estimates (`shift_intervals`), which the bound does not.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ..models.environment_vae import EnvironmentVAE, of_cells
from ..models.parts.decoders import Decoder, LinearDecoder
from ..models.parts.environment_priors import ENVIRONMENT_PRIORS, EnvironmentPrior, SingleEffects
from ..models.parts.errors import DataError
from ..models.parts.likelihoods import GaussianLikelihood, Likelihood
from .parts.linear_effects import LinearEffectsPosterior
from .parts.linear_gaussian import CellSums, LinearGaussian, Shifts
from .parts.linear_start import starting_values

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Part = TypeVar("Part")

MISFITS = [0.25 * 0.75**k for k in range(20)]  # variances of means beyond sampling noise that first sweeps allow for

CHUNK = 4096


class LinearEnvironmentVAEGuide(nn.Module):
    """The guide of this module's docstring, for `embergraph.inference.em`; `for_model` makes one that fits.

    The first sweep starts from the data alone: principal components, then free means of the environments, then the
    rotation in which they move few latents. Directions of the latent space of which a cell tells less than
    `minimum_information` (1 if latents were observed), or no more than noise alone would seem to, are dropped: their
    decoder is 0, and they are nobody's target. `rotation_agreement` is the weight of the axes among all local optima
    found, each weighted by the exponential of its bound; 0 if no environment moves anything.

    Parameters
    ----------
    prior, decoder, likelihood
        Of the model, and shared with it; decoder and likelihood are fitted in place. A scale that is not learned stays.
    minimum_information
        Between 0 and 1; 0 keeps all latents.

    Raises
    ------
    DataError
        If the parts have no closed form.
    """

    monotone = True
    gene_effects = None

    rotation_agreement: Tensor
    relative_change: Tensor

    def __init__(
        self, prior: EnvironmentPrior, decoder: Decoder, likelihood: Likelihood, *,
        minimum_information: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.prior, self.decoder, self.likelihood = _parts(prior, decoder, likelihood)
        if not 0 <= minimum_information < 1:
            raise DataError(f"minimum_information: found {minimum_information!r}; wanted a number from 0 to below 1")
        self.minimum_information = minimum_information
        self.environment = LinearEffectsPosterior.for_prior(self.prior)
        self.register_buffer("rotation_agreement", torch.tensor(0.0))
        self.register_buffer("relative_change", torch.tensor(1.0))
        self._sums: tuple[Any, Any, CellSums] | None = None

    @classmethod
    def for_model(cls, model: EnvironmentVAE, **options: Any) -> Self:
        """Make a guide that shares the parts of `model`; options are those of the class.

        Raises
        ------
        DataError
            If the model is not linear and Gaussian with single effects, or has a causal map or effects on genes.
        """
        for name in ("causal_map", "gene_effects"):
            if getattr(model, name) is not None:
                raise DataError(f"{name}: found {type(getattr(model, name)).__name__}; wanted None for exact sweeps")
        return cls(model.environment_prior, model.decoder, model.likelihood, **options)

    def attach(self, model: EnvironmentVAE) -> None:
        """Share the parts of `model`, after both were read from disk."""
        parts = _parts(model.environment_prior, model.decoder, model.likelihood)
        self.prior, self.decoder, self.likelihood = parts

    def forward(
        self,
        environment: Int[Tensor, " cell"],
        expression: Float[Tensor, "cell gene"],
        descriptors: Float[Tensor, "condition feature"] | None = None,
        library: Float[Tensor, " cell"] | None = None,
    ) -> None:
        """Draw targets and sizes, then the latents of all cells given these."""
        linear = self.linear()
        drawn = poutine.trace(self.draw_environments).get_trace(descriptors)
        with poutine.block():
            mean = poutine.replay(self.prior, trace=drawn)(descriptors).mean
        with pyro.plate("cell", environment.shape[-1], dim=-1):
            loc, V = linear.latents(expression.double(), of_cells(mean, environment).double())
            scale = torch.linalg.cholesky(V).to(mean)
            pyro.sample("z", dist.MultivariateNormal(loc.to(mean), scale_tril=scale))  # (cell, latent)

    def draw_environments(self, descriptors: Float[Tensor, "condition feature"] | None = None) -> None:
        """Draw targets and sizes, with what is not known of axes, scales and origin."""
        self.environment.widened(self.linear())(self.prior, descriptors)

    def linear(self) -> LinearGaussian:
        """Copies of decoder and noise in double precision."""
        weight, bias = (part.detach().double().clone() for part in (self.decoder.weight, self.decoder.bias))
        return LinearGaussian(weight, bias, self.likelihood.scale.detach().double().square())

    @torch.no_grad()
    def update(self, model: EnvironmentVAE, inputs: Mapping[str, Tensor], step: int) -> float:
        """One sweep; returns the bound on the log density of expression after it."""
        cells = self.sums(inputs["expression"], inputs["environment"])
        if step == 0:
            self.start(cells)
        before = self.linear()
        shifts = self.sweep(cells)
        after = self.linear()
        self.relative_change.fill_(
            (after.weight - before.weight).abs().max() / after.weight.abs().max().clamp_min(1e-9)
        )
        return float(after.log_likelihood(cells, shifts) - self.environment.kl(self.prior))

    def sweep(self, cells: CellSums) -> Shifts:
        """Closed forms of effects, then of decoder and noise; returns moments of the shifts."""
        linear = self.linear()
        self.environment.fit_effects(self.prior, cells, linear)
        shifts = self.environment.shifts(cells)
        moments = linear.moments(cells, shifts)
        scales = moments.best_scales(cells.total)
        self.take(linear.maximised(cells, moments).transformed(torch.diag(scales)))
        return shifts

    def start(self, cells: CellSums) -> None:
        """Starting values from the data; then sweeps in which axes settle before weak effects can hold them."""
        found = starting_values(
            self.prior,
            self.environment,
            cells,
            minimum_information=self.minimum_information,
            bounds=self.variance_bounds(),
        )
        self.rotation_agreement.fill_(found.agreement)
        self.take(found.linear)
        for misfit in MISFITS:
            self.environment.misfit.fill_(misfit)
            self.sweep(cells)
        self.environment.misfit.zero_()

    def take(self, linear: LinearGaussian) -> None:
        """Put decoder and noise into the model's parts."""
        self.decoder.weight.copy_(linear.weight)
        self.decoder.bias.copy_(linear.bias)
        if self.likelihood.learned:
            self.likelihood.set_scale_(linear.bounded(*self.variance_bounds()).variance.sqrt())

    def variance_bounds(self) -> tuple[float, float]:
        """Smallest and largest noise variance that the likelihood allows."""
        if self.likelihood.learned:
            return self.likelihood.floor**2, math.inf
        fixed = float(self.likelihood.scale.double()) ** 2
        return fixed, fixed

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept of the data, so that fits can go to other processes."""
        return self.__dict__ | {"_sums": None}

    def sums(self, expression: Float[Tensor, "cell gene"], environment: Int[Tensor, " cell"]) -> CellSums:
        """Sums over the cells, made once for each data set."""
        if self._sums is None or self._sums[0]() is not expression or self._sums[1]() is not environment:
            cells = CellSums.of(expression, environment, self.prior.num_environments)
            self._sums = (weakref.ref(expression), weakref.ref(environment), cells)
        return self._sums[2]

    def change(self) -> float:
        """Largest change of a decoder weight in the last sweep, relative to the largest weight."""
        return float(self.relative_change)

    def chunks(
        self, model: EnvironmentVAE, inputs: Mapping[str, Tensor], size: int = CHUNK
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows of the data, part by part, with location and log variance of their latents given the mean shifts."""
        mean, linear = self.environment.moments(self.prior, None).mean.double(), self.linear()
        for rows in torch.arange(len(inputs["environment"]), device=mean.device).split(size):
            loc, V = linear.latents(inputs["expression"][rows].double(), of_cells(mean, inputs["environment"][rows]))
            log_variance = V.diagonal().log().expand(loc.shape)
            yield rows, loc.to(self.decoder.weight), log_variance.to(self.decoder.weight)

    def expected_targets(self, model: EnvironmentVAE) -> None:
        """None: there is no causal map to cut from."""

    def settings(self) -> dict[str, Any]:
        """JSON description; the numbers are in the saved state."""
        return {
            "prior": self.prior.settings(),
            "decoder": self.decoder.settings(),
            "likelihood": self.likelihood.settings(),
            "minimum_information": self.minimum_information,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A guide of the described shapes, whose numbers the saved state then fills."""
        prior = ENVIRONMENT_PRIORS[settings["prior"]["kind"]].from_settings(settings["prior"])
        decoder = Decoder.from_settings(settings["decoder"])
        likelihood = Likelihood.from_settings(settings["likelihood"])
        return cls(prior, decoder, likelihood, minimum_information=settings["minimum_information"])


def _parts(prior: Any, decoder: Any, likelihood: Any) -> tuple[SingleEffects, LinearDecoder, GaussianLikelihood]:
    """The parts of a model, known to have closed forms together."""
    parts = (
        _wanted("environment_prior", prior, SingleEffects),
        _wanted("decoder", decoder, LinearDecoder),
        _wanted("likelihood", likelihood, GaussianLikelihood),
    )
    if decoder.uses_descriptors:
        raise DataError("decoder: found one that is given descriptors; wanted one of the latents alone")
    if not likelihood.shared:
        raise DataError("likelihood: found a scale for every gene; wanted scale='shared'")
    if prior.num_latents >= decoder.num_genes:
        raise DataError(f"num_latents: found {prior.num_latents}; wanted less than the {decoder.num_genes} genes")
    return parts


def _wanted(name: str, part: Any, kind: type[Part]) -> Part:
    if not isinstance(part, kind):
        raise DataError(f"{name}: found {type(part).__name__}; wanted {kind.__name__} for exact sweeps")
    return part
