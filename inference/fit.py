"""The result of every routine: a fitted posterior with names, that can be asked, saved and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..models.parts.errors import SchemaError
from ..models.schema import Schema
from . import diagnostics, query, resuming, saving
from . import readings as reading
from .ascent import Ascent
from .copies import owner_of
from .export import name_of, to_arviz
from .figures import Picture
from .inputs import DataLike, Template
from .options import Options
from .predictive import Predictive
from .registry import register
from .run import Run
from .stored import StoredDraws


class Fit(Predictive):
    """A fitted model: what `svi`, `em` and `mcmc` return and what `load` restores.

    Attributes
    ----------
    model
        The model, with its buffers as fitted.
    guide
        The fitted guide; None when draws are stored.
    draws
        Stored draws of a sampler; None for a guide.
    schema
        Inputs and dims of the model.
    template
        Shapes, names and attributes of the training data, without the data.
    history
        Loss (or log density) of every restart or chain at every step.
    settings
        How it was fitted: routine, steps, seed, convergence, what was held fixed.
    """

    exchangeable: ClassVar[tuple[str, ...]] = ()
    """Dims of readings whose labels mean nothing by themselves, such as latents."""

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        schema: Schema,
        template: Template,
        *,
        draws: StoredDraws | None = None,
        history: Sequence[Sequence[float]] = (),
        settings: Mapping[str, Any] | None = None,
        store: dict[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        if (guide is None) == (draws is None):
            raise SchemaError("Fit: wanted either a guide or stored draws")
        self.model, self.guide, self.schema, self.template, self.draws = model, guide, schema, template, draws
        self.settings = dict(settings or {})
        self.store = store
        self.training = dict(training or {})
        self._history = [list(map(float, h)) for h in history]

    @property
    def stored(self) -> StoredDraws:
        """The stored draws of a fit that has them.

        Raises
        ------
        SchemaError
            If it has a guide instead.
        """
        if self.draws is None:
            raise SchemaError("draws: found a fit with a guide; wanted one with stored draws, from a sampler")
        return self.draws

    def __repr__(self) -> str:
        source = name_of(self.guide) if self.guide is not None else "{} x {} draws".format(*self.stored.shape)
        return f"{type(self).__name__}({name_of(self.model)}, {source}, {self.settings.get('routine', '?')})"

    @property
    def history(self) -> xr.DataArray:
        """Loss by restart and step; NaN after a restart that ended early."""
        length = max((len(h) for h in self._history), default=0)
        padded = [h + [math.nan] * (length - len(h)) for h in self._history]
        array = np.array(padded).reshape(len(padded), length)
        return xr.DataArray(array, dims=("restart", "step"), name="loss")

    @property
    def device(self) -> torch.device:
        """Where the fit lives."""
        stored = (self.store or {}).get("params", {}).values()
        modules = [module for module in map(owner_of, (self.model, self.guide)) if module is not None]
        tensors = (t for module in modules for t in (*module.parameters(), *module.buffers()))
        return next((tensor.device for tensor in (*stored, *tensors)), torch.device("cpu"))

    def posterior(
        self,
        data: DataLike,
        num_samples: int = 1000,
        *,
        predictive: bool = True,
        prior: bool = True,
        seed: int = 0,
    ) -> xr.DataTree:
        """Export draws of the posterior with everything that ArviZ looks for.

        Parameters
        ----------
        data
            The data that the posterior is conditioned on (the training data; a fit keeps none).
        num_samples
            Draws in all; stored draws are thinned evenly, never repeated.
        predictive, prior
            Whether to add posterior predictive draws, and prior and prior predictive draws (left out for models whose
            prior cannot be sampled).
        seed
            Seed of the draws.

        Returns
        -------
        xr.DataTree
            See `to_datatree`. Attributes of ``posterior`` tell guide, routine, restarts, convergence and which sites
            were held fixed.
        """
        return query.posterior(self, data, num_samples, predictive=predictive, prior=prior, seed=seed)

    def to_arviz(self, data: DataLike, num_samples: int = 1000, **options: Any) -> Any:
        """`posterior` as the object that the installed ArviZ works on."""
        return to_arviz(self.posterior(data, num_samples, **options))

    def summary(self) -> dict[str, Any]:
        """What the attributes of a tree say about the fit."""
        how = ("routine", "seed", "steps_done", "final_loss", "num_restarts", "converged", "interrupted", "bound_falls")
        chosen = {key: self.settings[key] for key in how if key in self.settings}
        guide = name_of(self.guide) if self.guide is not None else "stored draws"
        return {"model_name": name_of(self.model), "guide_name": guide, "normalised": self.schema.normalised, **chosen}

    def predict(self, data: DataLike, num_samples: int = 200, *, seed: int = 0) -> xr.Dataset:
        """Draw the observed variables for any cells, old or new, from their inputs alone.

        Global sites are drawn from the posterior; sites that belong to cells are drawn afresh from their prior. Values
        of observed variables are not looked at; `data` may lack them, unless the model is a plain function, which may
        need their shape.
        """
        return query.predict(self, data, num_samples, seed=seed)

    def log_density(self, data: DataLike, num_samples: int = 500, *, seed: int = 0) -> xr.DataArray:
        """Held-out log predictive density of each cell, log mean over draws of p(x_i | draw), in nats.

        Global sites are drawn from the posterior; sites that belong to cells are averaged over their prior, never
        fitted to the cell that is scored.

        Returns
        -------
        xr.DataArray
            One value a cell (dim: the model's plate).
        """
        return query.log_density(self, data, num_samples, seed=seed)

    def global_draws(self, num_samples: int | None, seed: int = 0) -> dict[str, Tensor]:
        """Posterior draws of the sites that do not belong to cells, shaped (draw, plates or 1s, event)."""
        return query.global_draws(self, num_samples, seed=seed)

    def report(self, data: DataLike, test: DataLike | None = None, *, num_samples: int = 500) -> xr.Dataset:
        """Table of what can be known about the quality of the fit.

        Parameters
        ----------
        data
            The training data.
        test
            Held-out cells, for the log predictive density.
        num_samples
            Draws that the numbers are computed from.

        Returns
        -------
        xr.Dataset
            Scalars with their meaning in ``attrs["meaning"]``; `diagnostics.as_text` prints them.
        """
        return diagnostics.report(self, data, test, num_samples=num_samples)

    def readings(
        self, data: DataLike, *, num_samples: int = 200, level: float = 0.9, seed: int = 0
    ) -> dict[str, xr.Dataset]:
        """What users read off the fit, by name, in one form for all methods.

        Parameters
        ----------
        data
            The data that were fitted; if they are simulated, the truth that they carry (``true_*``) comes with it.
        num_samples
            Posterior draws.
        level
            Mass of the intervals.
        seed
            Seed of the draws.

        Returns
        -------
        dict of str to xr.Dataset
            Each with ``estimate`` and some of ``draws`` (dim ``draw`` first), ``lower`` and ``upper`` (at
            ``attrs["level"]``), ``probability`` (of a statement, such as that there is an edge) and ``truth`` (NaN
            where an entry does not count). Here: every site that is neither held fixed nor of single rows of the data;
            methods put networks, graphs, scales, targets and effects in their place.

        Raises
        ------
        DataError
            If `level` is not between 0 and 1.
        """
        return reading.readings(self, data, num_samples, level=level, seed=seed)

    def prepared(self, data: DataLike, *, observed: bool = True) -> xr.Dataset:
        """Data as the model takes them, refused if they are of other genes or on another scale than the fit's."""
        return query.checked(self, data, observed=observed)

    def figures(self, data: DataLike, *, num_samples: int = 200, seed: int = 0) -> list[Picture]:
        """Pictures of what the fit has found, for reports; methods have their own, the base has none."""
        return []

    def loo(self, data: DataLike, num_samples: int = 1000, *, seed: int = 0) -> xr.Dataset:
        """PSIS-LOO with the k-hat of every cell and of the guide, see `diagnostics.loo`."""
        return diagnostics.loo(self.posterior(data, num_samples, predictive=False, prior=False, seed=seed))

    def resume(self, data: DataLike, num_steps: int, *, progress: bool = True, options: Options | None = None) -> Self:
        """Go on with the chosen restart from where it stopped: same state of the routine, same random state.

        Parameters
        ----------
        data
            The training data.
        num_steps
            Further steps.
        progress
            Whether to show a bar.
        options
            How to optimise, when a fit of `svi` was read from disk and was not made with the defaults of `Options`.

        Returns
        -------
        Fit
            A new fit; this one is not changed.

        Raises
        ------
        SchemaError
            If the fit holds draws of a sampler.
        NumericalError
            As in `svi` and `em`.
        """
        return resuming.resume(self, data, num_steps, progress=progress, options=options)

    @classmethod
    def from_run(
        cls, run: Run | Ascent, runs: Sequence[Run | Ascent], template: Template, settings: Mapping[str, Any]
    ) -> Self:
        """Make a Fit of one run of `svi` or `em`; `runs` are all restarts."""
        details = {
            **settings,
            "steps_done": len(run.losses),
            "converged": run.converged,
            "final_loss": run.final_loss,
            "final_losses": [r.final_loss for r in runs],
            "failures": {str(i): r.failure for i, r in enumerate(runs) if r.failure},
        }
        return cls(
            run.model,
            run.guide,
            run.schema,
            template,
            history=[r.losses for r in runs],
            settings=details,
            store=run.store,
            training={**run.state(), "options": run.options},
        )

    def save(self, path: str | Path) -> Path:
        """Write the fit to a folder: numbers as tensors, everything else as JSON; no data and no code.

        Parameters
        ----------
        path
            The folder; made if needed. Files of an earlier fit in it are replaced.
        """
        return saving.save(self, path)

    @classmethod
    def load(
        cls, path: str | Path, model: Callable[..., Any] | None = None, guide: Callable[..., Any] | type | None = None
    ) -> Fit:
        """Read a fit that `save` wrote, in any process, without the training data.

        Parameters
        ----------
        path
            The folder.
        model, guide
            The objects that the fit was made with, or equal ones. Models and guides of this suite are rebuilt from
            their settings and need not be given; nothing is ever imported by a name found in a file.

        Raises
        ------
        LoadError
            If the files are damaged or of another format, or `model` or `guide` is missing or another one.
        """
        return saving.load(path, model, guide)


register(Fit)
