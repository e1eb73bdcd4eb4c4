"""The result of every routine: a fitted posterior with names, that can be asked, saved and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from ..models.parts.errors import DataError, NumericalError, SchemaError
from ..models.schema import Schema
from . import diagnostics, saving
from .draws import Pass, Sampler, join, log_mean_exp
from .export import build_tree, name_of, prior_pass, to_arviz
from .inputs import DataLike, Template, as_dataset, to_inputs
from .messengers import isolated, latent_sites, plates_of
from .registry import register
from .run import Options, Run

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class StoredDraws:
    """Draws that a sampler left, chain by chain.

    Attributes
    ----------
    values
        Latent sites, shaped (chain, draw, plates or 1s, event).
    statistics
        Further numbers of each draw for ``sample_stats``.
    """

    values: dict[str, Float[Tensor, "chain draw *site"]]
    statistics: dict[str, Float[np.ndarray, "chain draw"]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of chains and of draws in each."""
        first = next(iter(self.values.values()))
        return first.shape[0], first.shape[1]

    def thinned(self, num_samples: int | None) -> StoredDraws:
        """At most `num_samples` draws in all, evenly from every chain."""
        chains, draws = self.shape
        each = draws if num_samples is None else min(draws, max(1, num_samples // chains))
        keep = np.linspace(0, draws - 1, each).round().astype(int)
        values = {name: value[:, keep] for name, value in self.values.items()}
        return StoredDraws(values, {name: value[:, keep] for name, value in self.statistics.items()})

    def flat(self) -> dict[str, Tensor]:
        """Values with chains and draws on one axis, chain by chain."""
        return {name: value.flatten(0, 1) for name, value in self.values.items()}


class Fit:
    """A fitted model: what `svi` and `mcmc` return and what `load` restores.

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

    def __repr__(self) -> str:
        source = name_of(self.guide) if self.guide is not None else "{} x {} draws".format(*self.draws.shape)
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
        for module in (self.model, self.guide):
            if isinstance(module, torch.nn.Module):
                for tensor in (*module.parameters(), *module.buffers()):
                    return tensor.device
        return torch.device("cpu")

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
        dataset = self._checked(data)
        inputs = to_inputs(self.schema, dataset, device=self.device)
        with isolated(seed, self.store):
            result, num_chains, statistics = self._pass(inputs, num_samples, predictive=predictive)
            wanted = prior and self.schema.normalised
            prior_result = prior_pass(self.model, inputs, min(num_samples, 500)) if wanted else None
        stats: dict[str, Any] = {name: (("chain", "draw"), value) for name, value in statistics.items()}
        if self._history:
            stats["loss"] = (("restart", "step"), self.history.values)
        attributes = {**self.summary(), "held_fixed": held_fixed(result), "draw_seed": seed}
        return build_tree(
            self.schema, dataset, result, prior_result, num_chains=num_chains, statistics=stats, attributes=attributes
        )

    def to_arviz(self, data: DataLike, num_samples: int = 1000, **options: Any) -> Any:
        """`posterior` as the object that the installed ArviZ works on."""
        return to_arviz(self.posterior(data, num_samples, **options))

    def summary(self) -> dict[str, Any]:
        """What the attributes of a tree say about the fit."""
        kept = ("routine", "seed", "steps_done", "final_loss", "num_restarts", "converged", "interrupted")
        chosen = {key: self.settings[key] for key in kept if key in self.settings}
        guide = name_of(self.guide) if self.guide is not None else "stored draws"
        return {"model_name": name_of(self.model), "guide_name": guide, "normalised": self.schema.normalised, **chosen}

    def predict(self, data: DataLike, num_samples: int = 200, *, seed: int = 0) -> xr.Dataset:
        """Draw the observed variables for any cells, old or new, from their inputs alone.

        Global sites are drawn from the posterior; sites that belong to cells are drawn afresh from their prior. Values
        of observed variables are not looked at; `data` may lack them, unless the model is a plain function, which may
        need their shape.
        """
        dataset = self._checked(data, observed=False)
        plain = not isinstance(getattr(self.model, "schema", None), Schema)
        inputs = to_inputs(self.schema, dataset, device=self.device, observed=plain)
        result = self._global_pass(inputs, num_samples, seed, predictive=True)
        return build_tree(self.schema, dataset, result)["posterior_predictive"].to_dataset()

    def log_density(self, data: DataLike, num_samples: int = 500, *, seed: int = 0) -> xr.DataArray:
        """Held-out log predictive density of each cell, log mean over draws of p(x_i | draw), in nats.

        Global sites are drawn from the posterior; sites that belong to cells are averaged over their prior, never
        fitted to the cell that is scored.

        Returns
        -------
        xr.DataArray
            One value a cell (dim: the model's plate).
        """
        dataset = self._checked(data)
        inputs = to_inputs(self.schema, dataset, device=self.device)
        result = self._global_pass(inputs, num_samples, seed, predictive=False)
        total = torch.zeros(())
        for plates, values in result.log_likelihood.values():
            axes = [i + 1 for i, plate in enumerate(plates) if plate != self.schema.plate]
            total = total + (values.sum(axes) if axes else values)
        density = log_mean_exp(total.double()).cpu().numpy()
        plate = self.schema.plate
        coords = {plate: dataset[plate].values} if plate in dataset.coords else {}
        return xr.DataArray(density, dims=(plate,), coords=coords, name="log_density")

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

    def loo(self, data: DataLike, num_samples: int = 1000, *, seed: int = 0) -> xr.Dataset:
        """PSIS-LOO with the k-hat of every cell and of the guide, see `diagnostics.loo`."""
        return diagnostics.loo(self.posterior(data, num_samples, predictive=False, prior=False, seed=seed))

    def resume(self, data: DataLike, num_steps: int, *, progress: bool = True, options: Options | None = None) -> Self:
        """Go on optimising the chosen restart from where it stopped: same optimiser state, same random state.

        Parameters
        ----------
        data
            The training data.
        num_steps
            Further steps.
        progress
            Whether to show a bar.
        options
            How to optimise, when the fit was read from disk and was not made with the defaults of `Options`.

        Returns
        -------
        Fit
            A new fit; this one is not changed.

        Raises
        ------
        SchemaError
            If the fit holds draws of a sampler.
        NumericalError
            As in `svi`.
        """
        if self.guide is None or "optimizer" not in self.training:
            raise SchemaError("resume: found a fit without an optimiser's state; wanted one made by svi")
        inputs = to_inputs(self.schema, self._checked(data), device=self.device)
        chosen = options or self.training.get("options") or Options()
        run = Run(self.model, self.guide, self.schema, inputs, chosen, self.settings.get("seed", 0), self.store)
        run.restore(self.training)
        interrupted, total = False, len(run.losses) + num_steps
        with tqdm(total=num_steps, desc="SVI", disable=not progress) as bar:
            try:
                run.advance(num_steps, total, bar.update)
            except KeyboardInterrupt:
                interrupted = True
            except NumericalError as error:
                error.fit = type(self).from_run(run, [run], self.template, {**self.settings, "failure": str(error)})
                raise
        run.evaluate()
        return type(self).from_run(run, [run], self.template, {**self.settings, "interrupted": interrupted})

    @classmethod
    def from_run(cls, run: Run, runs: Sequence[Run], template: Template, settings: Mapping[str, Any]) -> Self:
        """Make a Fit of one SVI run; `runs` are all restarts."""
        details = {
            **settings,
            "steps_done": len(run.losses),
            "converged": run.converged,
            "final_loss": run.final_loss,
            "final_losses": [r.final_loss for r in runs],
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

    def _checked(self, data: DataLike, observed: bool = True) -> xr.Dataset:
        dataset = as_dataset(data)
        for name, (dims, shape, _) in self.template.variables.items():
            if name not in dataset or (self.schema.inputs[name].observed and not observed):
                continue
            for dim, size in zip(dims, shape, strict=True):
                if dim == self.schema.plate or dim not in dataset[name].dims:
                    continue
                if dataset.sizes[dim] != size:
                    raise DataError(f"{name}: found {dataset.sizes[dim]} along {dim!r}; wanted {size} as in the fit")
                labels = self.template.coords.get(dim)
                if labels is not None and dim in dataset.coords and list(dataset[dim].values) != labels:
                    raise DataError(f"{name}: found {dim} {list(dataset[dim].values)[:5]}...; wanted {labels[:5]}...")
        mark, found = self.template.attrs.get("standardized"), dataset.attrs.get("standardized")
        if mark != found:
            raise DataError(f"data: found standardized={found!r}; wanted {mark!r} as in the fit")
        return dataset

    def _pass(
        self, inputs: Mapping[str, Tensor], num_samples: int, *, predictive: bool
    ) -> tuple[Pass, int, dict[str, np.ndarray]]:
        sampler = Sampler(self.model, self.guide, inputs)
        passes = []
        if self.draws is None:
            for where in sampler.chunks(num_samples):
                count = where.stop - where.start
                values, log_q = sampler.guide_values(count)
                passes.append(sampler.model_pass(values, count, predictive=predictive, log_q=log_q))
            return join(passes), 1, {}
        kept = self.draws.thinned(num_samples)
        flat, total = kept.flat(), math.prod(kept.shape)
        for where in sampler.chunks(total):
            part = {name: value[where].to(self.device) for name, value in flat.items()}
            passes.append(sampler.model_pass(part, where.stop - where.start, predictive=predictive))
        return join(passes), kept.shape[0], kept.statistics

    def global_draws(self, num_samples: int | None, seed: int = 0) -> dict[str, Tensor]:
        """Posterior draws of the sites that do not belong to cells, shaped (draw, 1s, event)."""
        if self.draws is not None:
            flat = self.draws.thinned(num_samples).flat()
            inputs, values = (
                self.template.zeros(self.schema, self.device),
                {k: v.to(self.device) for k, v in flat.items()},
            )
        else:
            inputs = self.template.zeros(self.schema, self.device)
            with isolated(seed, self.store):
                values, _ = Sampler(self.model, self.guide, inputs).guide_values(num_samples or 1000)
        return {name: value for name, value in values.items() if name not in self._local(inputs)}

    def _local(self, inputs: Mapping[str, Tensor]) -> set[str]:
        with isolated(0, self.store), torch.no_grad():
            trace = poutine.trace(self.model).get_trace(**inputs)
        plate = self.schema.plate
        return {n for n, s in latent_sites(trace).items() if any(f.name == plate for f in plates_of(s).values())}

    def _global_pass(self, inputs: Mapping[str, Tensor], num_samples: int, seed: int, *, predictive: bool) -> Pass:
        values = self.global_draws(num_samples, seed)
        total = len(next(iter(values.values())))
        with isolated(seed, self.store):
            sampler = Sampler(self.model, None, inputs)
            passes = []
            for where in sampler.chunks(total):
                part = {name: value[where] for name, value in values.items()}
                passes.append(sampler.model_pass(part, where.stop - where.start, predictive=predictive))
        return join(passes)


def held_fixed(result: Pass) -> list[str]:
    """Sites that are the same in every draw: point estimates, not posteriors."""
    fixed = []
    for name, (_, values) in result.values.items():
        if len(values) > 1 and bool((values == values[:1]).all()):
            fixed.append(name)
    return fixed


register(Fit)
