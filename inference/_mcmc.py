"""Markov chain Monte Carlo of any Pyro model: the small-data oracle against which guides are tested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample, init_to_value
from torch import Tensor
from tqdm.auto import tqdm

from ..models.parts.errors import DataError, NumericalError, SchemaError
from .copies import float_dtype, make_pair, no_guide
from .density import max_plate_nesting
from .fit import Fit
from .inputs import DataLike, Template, as_dataset, to_inputs
from .messengers import Supply, isolated, latent_sites
from .options import check_counts
from .plain import schema_of
from .stored import StoredDraws


def mcmc(
    model: Callable[..., Any],
    data: DataLike,
    *,
    num_warmup: int = 500,
    num_draws: int = 500,
    num_chains: int = 1,
    start: Mapping[str, Tensor] | None = None,
    target_acceptance: float = 0.8,
    max_tree_depth: int = 10,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    latent: Iterable[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
    fit_class: type[Fit] = Fit,
) -> Fit:
    """Sample the posterior of a model by Pyro's NUTS.

    NUTS samples latent sites only; parameters of modules (``pyro.param``, ``nn.Parameter``) stay where they are.

    Parameters
    ----------
    model
        Pyro callable without discrete latent sites (or with enumerated ones, which are summed out).
    data
        As for `svi`.
    num_warmup, num_draws, num_chains
        Steps of adaptation and draws kept, for each of the chains, which run one after another.
    start
        Constrained values of all latent sites to start every chain from; drawn from the prior unless given.
    target_acceptance, max_tree_depth
        Settings of NUTS.
    seed, device, progress, latent, dims, fit_class
        As for `svi`.

    Returns
    -------
    Fit
        With stored draws. After Ctrl-C: the complete chains and draws so far, with ``fit.settings["interrupted"]``.

    Raises
    ------
    SchemaError, DataError
        As `svi`.
    NumericalError
        If a draw is not finite, or no start has a finite density.
    """
    check_counts(num_warmup=num_warmup, num_draws=num_draws, num_chains=num_chains, seed=seed)
    schema = schema_of(model, as_dataset(data), latent=latent, dims=dims)
    dataset = as_dataset(data, schema)
    inputs = to_inputs(schema, dataset, device=device)
    interrupted = False
    chains: list[Any] = []
    with isolated(seed, dtype=float_dtype(inputs)) as store, torch.enable_grad():
        model, _, _ = make_pair(model, no_guide, inputs)
        if start is None and not schema.normalised:
            raise SchemaError("start: found none for flat priors; wanted values of all sites, or proper priors")
        on = next((tensor.device for tensor in inputs.values()), None)
        given = {} if schema.normalised or start is None else start
        supplied = {name: torch.as_tensor(value, device=on) for name, value in given.items()}
        with torch.no_grad(), pyro.poutine.block(), Supply(supplied):  # flat priors have no draws
            trace = pyro.poutine.trace(model).get_trace(**inputs)
        strategy = init_to_sample if start is None else init_to_value(values=_checked_start(start, trace))
        for chain in range(num_chains):
            kernel = NUTS(
                model, target_accept_prob=target_acceptance, max_tree_depth=max_tree_depth, init_strategy=strategy,
                max_plate_nesting=max_plate_nesting(trace),
            )  # fmt: skip
            recorder = _Recorder(num_warmup + num_draws, f"NUTS {chain + 1}/{num_chains}", progress)
            with recorder.bar:
                try:
                    MCMC(kernel, num_draws, num_warmup, hook_fn=recorder, disable_progbar=True).run(**inputs)
                except KeyboardInterrupt:
                    interrupted = True
                except ValueError as error:
                    if "initial params" not in str(error):
                        raise
                    raise NumericalError("NUTS: found no start with a finite log density; wanted start=") from error
            if recorder.draws and (not chains or len(recorder.draws) == num_draws):
                chains.append(recorder.constrained(kernel))
            if interrupted:
                break
    if not chains:
        raise KeyboardInterrupt
    draws = _stored(chains, trace)
    settings = {
        "routine": "mcmc", "num_warmup": num_warmup, "num_draws": draws.shape[1], "num_chains": len(chains),
        "seed": seed, "interrupted": interrupted,
    }  # fmt: skip
    template = Template.of(schema, dataset)
    return fit_class(model, None, schema, template, draws=draws, settings=settings, store=store)


class _Recorder:
    """Keeps draws as they come, so that an interrupted run loses nothing."""

    def __init__(self, total: int, label: str, progress: bool) -> None:
        self.bar = tqdm(total=total, desc=label, disable=not progress)
        self.draws: list[dict[str, Tensor]] = []
        self.acceptance: list[float] = []
        self.divergences: list[float] = []
        self._divergent = 0

    def __call__(self, kernel: Any, values: Mapping[str, Tensor], stage: str, step: int) -> None:
        self.bar.update()
        info = kernel.logging()
        if "acc. prob" in info:
            self._acceptance = float(info["acc. prob"])
        if not stage.lower().startswith("warmup"):
            self.draws.append({name: value.detach().clone() for name, value in values.items()})
            self.acceptance.append(self._acceptance)
            found = len(kernel._divergences)
            self.divergences.append(float(found > self._divergent))
            self._divergent = found

    def constrained(self, kernel: Any) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Draws in the sites' own spaces, and statistics."""
        stacked = {name: torch.stack([draw[name] for draw in self.draws]) for name in self.draws[0]}
        values = {
            name: kernel.transforms[name].inv(v) if name in kernel.transforms else v for name, v in stacked.items()
        }
        return values, {"acceptance": np.array(self.acceptance), "divergences": np.array(self.divergences)}


def _checked_start(start: Mapping[str, Any], trace: Any) -> dict[str, Tensor]:
    latent = {n: s for n, s in latent_sites(trace).items() if s["infer"].get("enumerate") != "parallel"}
    if set(start) != set(latent):
        raise DataError(f"start: found values of {sorted(start)}; wanted values of {sorted(latent)}")
    values = {}
    for name, site in latent.items():
        value = torch.as_tensor(start[name], dtype=site["value"].dtype, device=site["value"].device)
        if value.numel() != site["value"].numel():
            raise DataError(f"start: found {name} of shape {tuple(value.shape)}; wanted {tuple(site['value'].shape)}")
        values[name] = value.reshape(site["value"].shape)
    return values


def _stored(chains: list[tuple[dict[str, Tensor], dict[str, np.ndarray]]], trace: Any) -> StoredDraws:
    """Stack chains and pad the sites' plates with 1s up to the nesting of the model, as `Sampler` wants them."""
    nesting = max_plate_nesting(trace)
    values = {}
    for name in chains[0][0]:
        stacked = torch.stack([chain[0][name] for chain in chains])
        if not bool(torch.isfinite(stacked).all()):
            raise NumericalError(f"{name}: the draws of NUTS are not finite")
        batch = stacked.dim() - 2 - trace.nodes[name]["fn"].event_dim
        shape = stacked.shape[:2] + (1,) * (nesting - batch) + stacked.shape[2:]
        values[name] = stacked.reshape(shape)
    statistics = {key: np.stack([chain[1][key] for chain in chains]) for key in chains[0][1]}
    return StoredDraws(values, statistics)
