"""Sizes of shifts under a network decoder, calibrated on simulated counts.

A network decoder bends the axes of the latents. Within an environment, an inferred latent is then partly a non-linear
function of other latents, and the mean of an environment moves along it by less than the true shift: for Z ~
Normal(mu, I), the slope of E h(Z) in mu_k is Cov(h, Z_k), the linear share of h alone (Stein's lemma). The posterior of
the shifts knows nothing of this; it is conditional on the decoder.

Two numbers that can be computed from a fit tell how much is missing, both averages over the
latents that are a target of two environments or more, and of at most half (others are empty, or stand for an offset):

    x = mean of (zbar_ek - E mean_ek)^2 - 1 / n_e where there is no target     (misfit of the environments' means)
    v = mean posterior variance of a cell's latent                             (how little expression says of it)

In simulated counts the mean ratio of estimated to true shift and the variance of its error, relative to the shift, were

    scale^2 = 1 - 3.3 x - 1.2 v,    spread^2 = 0.0041 + 0.16 x

The four numbers are regressions on 18 simulated data sets. On 13 others of random sizes, intervals of 50, 80 and 95 %
covered .58, .84 and .945 on average (worst: .32, .59 and .80), where those of the fit alone covered .02 to .45, .04 to
.74 and .07 to .88. Intervals are too wide where the simulator is linear. `make bench METHOD=environment_vae
BENCH=shift_sizes` measures it. The numbers are empirical: they hold for the default plan on counts like these, and
nothing proves them for other data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import xarray as xr

from ..guides.environment_vae import EnvironmentVAEGuide
from ..guides.parts.environment_base import EnvironmentStatistics
from ..inference.inputs import to_inputs
from ..inference.messengers import isolated
from ..models.parts.decoders import MLPDecoder
from ..models.parts.environment_priors import SingleEffects
from ..models.parts.errors import DataError, SchemaError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ._environment_vae_fit import EnvironmentVAEFit

MISFIT_LOSS, VARIANCE_LOSS = 3.3, 1.2
LEAST_SPREAD, MISFIT_SPREAD = 0.0041, 0.16
FEWEST_TARGETS = 2  # a single one may be false
SMALLEST_SCALE = 0.6**0.5  # below it, simulated intervals covered too little
CALIBRATED_NOTE = "sizes and intervals of shifts are calibrated on simulated counts, not derived from the model"


@dataclass(frozen=True)
class ShiftCalibration:
    """What sizes of shifts have to be corrected by.

    Attributes
    ----------
    scale
        Estimated shift over true shift.
    spread
        Standard deviation of the remaining error of a shift, relative to the shift.
    """

    scale: float
    spread: float

    @classmethod
    def of(
        cls,
        statistics: EnvironmentStatistics,
        mean: Float[Tensor, "condition latent"],
        probability: Float[Tensor, "condition latent"],
        control: int | None = None,
    ) -> Self:
        """From what the cells say and what the posterior makes of it.

        Parameters
        ----------
        statistics
            Counts and means of the environments, and posterior variances of latents.
        mean, probability
            Posterior mean of the shifts, and probability of targets.
        control
            Environment that is left out, None for none.

        Raises
        ------
        DataError
            If there are no targets to judge by, or the fit is worse than those that the numbers come from.
        """
        rows = statistics.count > 0
        if control is not None:
            rows[control] = False
        number = (probability[rows] > 0.5).sum(0)
        used = (number >= FEWEST_TARGETS) & (number <= len(probability[rows]) / 2)
        if not bool(used.any()):
            raise DataError(
                f"shifts: found targets of latents in {number.tolist()} environments; wanted some latent with "
                f"{FEWEST_TARGETS} or more, and at most half of the environments"
            )
        idle = (1 - probability[rows][:, used].double()).clamp(0.0, 1.0)
        residual = (statistics.mean - mean)[rows][:, used].double()
        excess = residual.square() - 1 / statistics.count[rows, None].double()
        misfit = max(0.0, float((idle * excess).sum() / idle.sum()))
        variance = float(statistics.variance[used].double().mean())
        square = 1 - MISFIT_LOSS * misfit - VARIANCE_LOSS * variance
        if not square >= SMALLEST_SCALE**2:
            raise DataError(
                f"shifts: found an estimated scale^2 of {square:.2f}; wanted at least {SMALLEST_SCALE**2:.2f}, the "
                "range that was simulated. Train for longer, or on more cells"
            )
        return cls(math.sqrt(square), math.sqrt(LEAST_SPREAD + MISFIT_SPREAD * misfit))

    def draws(
        self, shifts: Float[np.ndarray, "draw condition latent"], seed: int = 0
    ) -> Float[np.ndarray, "draw condition latent"]:
        """Posterior draws of the shifts after the correction; no shift stays no shift.

        Parameters
        ----------
        shifts
            Draws from the posterior of the fit.
        seed
            Of the draws of what is not known of sizes.
        """
        noise = np.random.default_rng(seed).normal(size=shifts.shape)
        return shifts / self.scale * (1 + self.spread * noise)

    def attributes(self) -> dict[str, Any]:
        """What a table of corrected shifts has to say."""
        return {"shift_intervals": CALIBRATED_NOTE, "shift_scale": self.scale, "shift_spread": self.spread}


def shift_calibration(fit: EnvironmentVAEFit, data: xr.Dataset) -> ShiftCalibration:
    """Correction for a fit, from one pass over its data.

    Parameters
    ----------
    fit
        Of counts, with a network decoder and `SingleEffects`.
    data
        The prepared data of the fit.

    Raises
    ------
    SchemaError
        If the model is of a kind that the correction was not measured for.
    DataError
        As for `ShiftCalibration.of`.
    """
    model, guide = fit.model, fit.guide
    wanted = {
        "decoder": isinstance(model.decoder, MLPDecoder) and not model.decoder.uses_descriptors,
        "environment_prior": isinstance(model.environment_prior, SingleEffects),
        "likelihood": model.likelihood.counts,
        "causal_map": model.causal_map is None,
        "gene_effects": model.gene_effects is None,
    }
    for part, fits in wanted.items():
        if not fits:
            raise SchemaError(
                f"{part}: found {type(getattr(model, part)).__name__}; sizes of shifts were calibrated for counts with "
                "an MLPDecoder and SingleEffects, without causal map and gene effects"
            )
    assert isinstance(guide, EnvironmentVAEGuide)
    inputs = to_inputs(model.schema, data, device=fit.device)
    with isolated(0, fit.store), torch.no_grad():
        statistics = guide.statistics(model, inputs)
        mean = guide.environment.moments(model.environment_prior).mean
    probability = guide.environment.target_probability()
    assert probability is not None
    return ShiftCalibration.of(statistics, mean, probability, model.control)
