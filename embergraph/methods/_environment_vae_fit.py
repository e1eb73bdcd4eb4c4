"""A fitted Environment VAE: what it tells of environments, latents, genes and itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self, cast

import numpy as np
import torch
import xarray as xr

from ..guides.environment_vae import EnvironmentVAEGuide
from ..guides.linear_environment_vae import LinearEnvironmentVAEGuide
from ..inference import Fit, register
from ..inference.figures import Picture
from ..inference.inputs import DataLike, Template, as_dataset, to_inputs
from ..inference.messengers import isolated
from ..inference.options import Options
from ..inference.query import checked
from ..inference.readings import check_level
from ..inference.replicated import Replicated
from ..models.environment_vae import EnvironmentVAE
from ..models.parts.errors import DataError
from ..models.schema import Schema
from . import _environment_vae_read as read
from ._environment_vae_data import prepared
from ._environment_vae_entries import entry_log_density
from ._environment_vae_figures import environment_figures
from ._environment_vae_new import new_environments
from ._environment_vae_readings import environment_readings
from ._environment_vae_report import environment_report
from ._environment_vae_shifts import shift_calibration

TEMPLATE_CELLS = 2


class EnvironmentVAEFit(Fit):
    """A fitted Environment VAE: a `Fit` that also tells targets, shifts, latents and effects on genes.

    Data are given as they were to the fit: counts or expression with ``environment``; what the model needs beside them
    (the library size) is computed again.
    """

    exchangeable = ("latent",)
    model: EnvironmentVAE
    guide: EnvironmentVAEGuide | LinearEnvironmentVAEGuide

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        schema: Schema,
        template: Template,
        **facts: Any,
    ) -> None:
        super().__init__(model, guide, schema, _small(template), **facts)
        self.guide.attach(self.model)

    @property
    def dtype(self) -> str:
        """Precision of the fit."""
        return self.template.variables["expression"][2]

    def environments(
        self,
        data: DataLike | None = None,
        *,
        interval: float = 0.9,
        calibrated: bool = False,
        num_samples: int = 2000,
        seed: int = 0,
    ) -> xr.Dataset:
        """What each environment does to each latent.

        Parameters
        ----------
        data
            The data of the fit, where shifts depend on descriptors or sizes are `calibrated`; else not needed.
        interval
            Probability of the intervals.
        calibrated
            Whether sizes of shifts and their intervals are corrected for the curvature of a network decoder, by
            constants that were measured on simulated counts (see `ShiftCalibration`). They hold for counts and the
            default plan; nothing proves them for other data.
        num_samples, seed
            Draws that means and intervals are computed from.

        Returns
        -------
        xr.Dataset
            ``target_probability``, ``positive_probability`` (that the shift is positive, given that there is one),
            ``shift`` (posterior mean), ``shift_sd``, ``shift_lower`` and ``shift_upper`` over ``(condition, latent)``,
            in standard deviations of the latent within an environment. Signs and order of latents are arbitrary.
        """
        if calibrated and data is None:
            raise DataError(
                "data: found none; wanted the data of the fit, from which calibrated=True takes its numbers"
            )
        dataset = None if data is None else self.prepared(data, observed=calibrated)
        correction = shift_calibration(self, dataset) if calibrated and dataset is not None else None
        return read.environments(self, dataset, interval, num_samples, seed, correction)

    def latents(self, data: DataLike) -> xr.Dataset:
        """Posterior ``mean`` and ``sd`` of the latents of any cells, ``(cell, latent)``."""
        return read.latents(self, self.prepared(data))

    def effects(
        self,
        data: DataLike,
        *,
        control: str | None = None,
        interval: float = 0.9,
        num_samples: int = 100,
        seed: int = 0,
    ) -> xr.Dataset:
        """Effect of each environment on each gene, averaged over the cells of the environment.

        The mean of an environment is that of the decoded latents of its own cells (the aggregated posterior), not of
        latents from the prior, which know the shift alone.

        Parameters
        ----------
        data
            Cells, the training cells as a rule.
        control
            Environment that effects are relative to; by default the control of the model, else the mean of all.
        interval, num_samples, seed
            Probability of the intervals, and the draws that they are computed from.

        Returns
        -------
        xr.Dataset
            ``effect`` with ``effect_lower`` and ``effect_upper``, and ``positive_probability``, over ``(condition,
            gene)``: log2 ratios for counts, else differences. NaN for environments without cells.
        """
        return read.effects(self, self.prepared(data), control, interval, num_samples, seed)

    def log_density(self, data: DataLike, num_samples: int = 60, *, seed: int = 0) -> xr.DataArray:
        """Log predictive density of each cell given its environment, in nats, by importance sampling.

        Latents are drawn from a wider q(z | x) and weighted: a lower bound in expectation, tighter with more draws.
        What is not known of shifts and gene effects is averaged over.
        """
        return read.log_density(self, self.prepared(data), num_samples, seed)

    def entry_log_density(self, data: DataLike, num_samples: int = 60, *, seed: int = 0) -> xr.Dataset:
        """Log density of every gene of held-out cells given the rest of the cell; see `Fit.entry_log_density`.

        Latents are those of `log_density`, weighted by the rest of the cell; exact for linear Gaussian models. The
        library size of counts is an input: it is known, though it is the sum of the very counts.
        """
        return entry_log_density(self, self.prepared(data), num_samples, seed)

    def new_environments(
        self, descriptors: xr.DataArray, *, interval: float = 0.9, num_samples: int = 200, seed: int = 0
    ) -> xr.Dataset:
        """Predict environments that were not seen, from their descriptors ``(condition, feature)``.

        Returns
        -------
        xr.Dataset
            ``mean``, ``lower`` and ``upper`` over ``(condition, gene)`` (of the expression of a cell, or of its shares
            of counts), and ``shift (condition, latent)``.

        Raises
        ------
        SchemaError
            If the prior of the model does not use descriptors.
        """
        return new_environments(self, descriptors, interval, num_samples, seed)

    def posterior(
        self,
        data: DataLike,
        num_samples: int = 1000,
        *,
        predictive: bool = False,
        prior: bool = False,
        seed: int = 0,
        num_cells: int | None = 200,
    ) -> xr.DataTree:
        """Posterior draws for ArviZ, with `environments` as a group of its own.

        Parameters
        ----------
        data
            The data that were fitted.
        num_samples
            Draws.
        predictive, prior
            Whether to add predictive draws, and prior draws.
        seed
            Seed of the draws.
        num_cells
            Cells whose latents and likelihoods are drawn, evenly spaced; None for all. Shifts are those of all cells.
        """
        dataset = self.prepared(data)
        total = dataset.sizes["cell"]
        if num_cells is not None and num_cells < total:
            dataset = dataset.isel(cell=np.linspace(0, total - 1, num_cells).round().astype(int))
        tree = super().posterior(dataset, num_samples, predictive=predictive, prior=prior, seed=seed)
        tree["posterior"].attrs |= read.conventions(self)
        tree["environments"] = xr.DataTree(read.environments(self, dataset, 0.9, num_samples, seed))
        return tree

    def predict(self, data: DataLike, num_samples: int = 200, *, seed: int = 0) -> xr.Dataset:
        """Draw the expression of cells from their environment alone (and their library size); see `Fit.predict`."""
        return super().predict(self.prepared(data, observed=False), num_samples, seed=seed)

    def replicated(self, data: DataLike, num_samples: int = 200, **options: Any) -> Replicated:
        """Draw the expression anew, part by part; see `Fit.replicated`."""
        return super().replicated(self.prepared(data), num_samples, **options)

    def resume(self, data: DataLike, num_steps: int, *, progress: bool = True, options: Any = None) -> Self:
        """Go on training; see `Fit.resume`. Rotations are those of the plan that are still due.

        A fit of `svi` that was read from disk goes on at its last rate, since a file holds no schedules.
        """
        dataset = self.prepared(data)
        if options is None and "optimizer" in self.training and "options" not in self.training:
            kept = ("batch_size", "clip_norm", "update_every")
            options = Options(**{key: self.settings[key] for key in kept if key in self.settings})
        fit = super().resume(dataset, num_steps, progress=progress, options=options)
        if isinstance(fit.guide, EnvironmentVAEGuide):
            settle(fit, dataset)
        return fit

    def report(self, data: DataLike, test: DataLike | None = None, *, num_samples: int = 60) -> xr.Dataset:
        """Table of what can be known about the quality of the fit; `as_text` prints it."""
        held_out = None if test is None else self.prepared(test)
        return environment_report(self, self.prepared(data), held_out, num_samples=num_samples)

    def readings(
        self, data: DataLike, *, num_samples: int = 200, level: float = 0.9, seed: int = 0
    ) -> dict[str, xr.Dataset]:
        """``target``, ``shift`` and ``effect``; see `Fit.readings`.

        The truth of a simulation is brought into the order and signs of the fitted latents by their cells.
        """
        check_level(level)
        return environment_readings(self, as_dataset(data), num_samples, level=level, seed=seed)

    def figures(self, data: DataLike, *, num_samples: int = 200, seed: int = 0) -> list[Picture]:
        """Targets, shifts, latents of cells and effects on genes; see `Fit.figures`."""
        return environment_figures(self, self.prepared(data), num_samples, seed)

    def prepared(self, data: DataLike, *, observed: bool = True) -> xr.Dataset:
        """Data as the model takes them, with what it computes from them; see `Fit.prepared`."""
        dataset = as_dataset(data, self.schema)
        if not isinstance(dataset, xr.Dataset):
            raise DataError(f"data: found {type(data).__name__}; wanted a Dataset")
        return checked(self, prepared(self.model, dataset, observed=observed, dtype=self.dtype), observed=observed)


def settle(fit: EnvironmentVAEFit, data: xr.Dataset) -> None:
    """Give the environments the posterior of their prior, whatever stage training ended in."""
    inputs = to_inputs(fit.model.schema, data, device=fit.device)
    with isolated(0, fit.store), torch.no_grad():
        statistics = cast("EnvironmentVAEGuide", fit.guide).statistics(fit.model, inputs)
        fit.guide.environment.update(fit.model.environment_prior, statistics, inputs.get("descriptors"))


def _small(template: Template) -> Template:
    """The template with two cells: an amortised guide asks for none, and questions without data should cost nothing."""

    def of(dims: tuple[str, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
        both = zip(dims, sizes, strict=True)
        return tuple(min(size, TEMPLATE_CELLS) if dim == "cell" else size for dim, size in both)

    variables = {n: (dims, of(dims, sizes), dtype) for n, (dims, sizes, dtype) in template.variables.items()}
    return replace(template, variables=variables)


register(EnvironmentVAEFit)
