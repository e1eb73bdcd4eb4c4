"""Posterior draws as an xarray DataTree that ArviZ reads, for our fits and for anybody's Pyro model and guide."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..models.parts.errors import SchemaError
from ..models.schema import Schema
from .draws import Pass, Site, join
from .inputs import DataLike, as_dataset, auto_dim, to_inputs
from .plain import check_dims, schema_of
from .sampler import Sampler

Groups = dict[str, xr.Dataset]


def to_datatree(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: DataLike,
    *,
    num_samples: int = 1000,
    dims: Mapping[str, tuple[str, ...]] | None = None,
    latent: Iterable[str] = (),
    predictive: bool = True,
    prior: bool = True,
    seed: int = 0,
) -> xr.DataTree:
    """Export the posterior of a Pyro model and its fitted guide.

    Works on any model and guide, wherever they were trained; parameters are read from Pyro's current store. The model
    must be vectorisable: indices from the right, no branching on values.

    Parameters
    ----------
    model, guide
        Pyro callables with the same arguments.
    data
        Dataset, or mapping of the model's arguments to ``(dims, values)`` or arrays. Minibatches are not needed: log
        likelihoods are computed on all of it and never scaled.
    num_samples
        Draws: one chain, since they are independent.
    dims
        Names of event dims by site; plate dims take the plates' names and the labels of the data's dim of that name.
    latent
        Arguments of the model that are left to their defaults.
    predictive, prior
        Whether to add posterior predictive draws, and prior and prior predictive draws.
    seed
        Seed of the draws; the caller's random state is left alone.

    Returns
    -------
    xr.DataTree
        Groups ``posterior``, ``sample_stats`` (``log_p`` and ``log_q`` of each draw; the mean of log_q - log_p is the
        loss, the negative ELBO), ``log_likelihood``, ``observed_data``, ``constant_data`` and the optional ones.

    Raises
    ------
    SchemaError
        If data lack an argument of the model, or dims do not fit.
    NumericalError
        If a draw is NaN.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pyro.infer.autoguide import AutoNormal
    >>> def model(y):
    ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("cell", len(y)):
    ...         pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)
    >>> y = torch.arange(5.0)
    >>> with pyro.get_param_store().scope():  # leaves your other parameters alone
    ...     guide = AutoNormal(model)
    ...     routine = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    ...     losses = [routine.step(y) for _ in range(100)]
    ...     tree = to_datatree(model, guide, {"y": ("cell", y)}, num_samples=200)
    >>> dict(tree["posterior"]["mean"].sizes)
    {'chain': 1, 'draw': 200}
    """
    schema = schema_of(model, as_dataset(data), latent=latent, dims=dims)
    dataset = as_dataset(data, schema)
    inputs = to_inputs(schema, dataset)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        result = guide_pass(model, guide, inputs, num_samples, predictive=predictive)
        prior_result = prior_pass(model, inputs, num_samples) if prior else None
    attributes = {"model_name": name_of(model), "guide_name": name_of(guide), "seed": seed}
    return build_tree(schema, dataset, result, prior_result, attributes=attributes)


def name_of(thing: object) -> str:
    """Name of a function or of an object's class."""
    thing = unwrapped(thing)
    return getattr(thing, "__name__", type(thing).__name__)


def unwrapped(thing: object) -> object:
    """The function inside what decorators and handlers of Pyro make of it."""
    while isinstance(thing, functools.partial):
        inside = [part for part in thing.args if callable(part) and not isinstance(part, Messenger)]
        thing = inside[-1] if inside else thing.func
    return thing


def guide_pass(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    num_samples: int,
    *,
    predictive: bool = False,
) -> Pass:
    """Draw from a guide and score by the model."""
    sampler = Sampler(model, guide, inputs)
    passes = []
    for where in sampler.chunks(num_samples):
        count = where.stop - where.start
        values, log_q = sampler.guide_values(count)
        passes.append(sampler.model_pass(values, count, predictive=predictive, log_q=log_q))
    return join(passes)


def prior_pass(model: Callable[..., Any], inputs: Mapping[str, Tensor], num_samples: int) -> Pass:
    """Draw from the prior, with prior predictive draws."""
    sampler = Sampler(model, None, inputs)
    counts = [where.stop - where.start for where in sampler.chunks(num_samples)]
    return join([sampler.generate(count) for count in counts])


def build_tree(
    schema: Schema,
    data: xr.Dataset,
    result: Pass,
    prior: Pass | None = None,
    *,
    num_chains: int = 1,
    statistics: Mapping[str, tuple[tuple[str, ...], Any]] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Name the dims of draws and put them into ArviZ's groups.

    Parameters
    ----------
    schema, data
        Where dims and labels come from.
    result, prior
        Draws of posterior and prior; posterior draws run over chains first.
    num_chains
        Chains that the posterior draws are split into.
    statistics
        Further variables of ``sample_stats`` with their dims.
    attributes
        Attributes of the posterior group: model, guide, seed, what was held fixed.
    """
    name = _Namer(schema, data, num_chains)
    stats: dict[str, Any] = {"log_p": (("chain", "draw"), _split(result.log_p, num_chains))}
    if result.log_q is not None:
        stats["log_q"] = (("chain", "draw"), _split(result.log_q, num_chains))
    stats.update(statistics or {})
    groups: Groups = {
        "posterior": name.dataset(result.values),
        "sample_stats": xr.Dataset(stats),
        "log_likelihood": name.dataset(result.log_likelihood),
        "observed_data": name.dataset(result.observed, sampled=False),
        "constant_data": _constant_data(data, schema),
    }
    if result.predictive:
        groups["posterior_predictive"] = name.dataset(result.predictive)
    if prior is not None:
        one_chain = _Namer(schema, data, 1)
        groups["prior"] = one_chain.dataset(prior.values)
        groups["prior_predictive"] = one_chain.dataset(prior.predictive)
    common = {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "pyro-ppl",
        "inference_library_version": pyro.__version__,
        "creation_library": "embergraph",
        "creation_library_version": version("embergraph"),
        "sample_dims": ["chain", "draw"],
    }
    for group in groups.values():
        group.attrs.update(common)
    groups["posterior"].attrs.update(storable(attributes or {}))
    return xr.DataTree.from_dict({f"/{key}": value for key, value in groups.items() if value.data_vars})


def to_arviz(tree: xr.DataTree) -> Any:
    """Convert a tree into what the installed ArviZ works on: InferenceData for 0.x, the tree itself for 1.x."""
    import arviz as az

    return az.from_datatree(tree) if hasattr(az, "from_datatree") else tree


def storable(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as netCDF can hold them: no None, bools as 0 and 1, mappings and lists as JSON text."""
    result: dict[str, Any] = {}
    for key, value in attributes.items():
        if isinstance(value, np.generic):
            value = value.item()
        if value is None:
            continue
        if isinstance(value, bool):
            result[key] = int(value)
        else:
            result[key] = value if isinstance(value, str | int | float) else json.dumps(value, default=str)
    return result


def _split(values: Tensor, num_chains: int) -> np.ndarray:
    return values.reshape(num_chains, -1, *values.shape[1:]).cpu().numpy()


def _constant_data(data: xr.Dataset, schema: Schema) -> xr.Dataset:
    names = [n for n, spec in schema.inputs.items() if n in data and not spec.observed]
    variables = {n: (data[n].dims, data[n].values) for n in names}
    used = {dim for n in names for dim in data[n].dims if dim in data.coords}
    return xr.Dataset(variables, {dim: plain_labels(data[dim].values) for dim in used})


def plain_labels(values: Any) -> np.ndarray:
    """Labels as netCDF can hold them: numbers stay, everything else becomes text."""
    array = np.asarray(values)
    return array if array.dtype.kind in "iuf" else np.array([str(value) for value in array])


class _Namer:
    """Gives draws their dims and labels."""

    def __init__(self, schema: Schema, data: xr.Dataset, num_chains: int) -> None:
        self._schema, self._data, self._num_chains = schema, data, num_chains
        # Only dims of the model's inputs lend their labels: the archetypes of a simulation's truth are not the model's.
        self._known = {dim for spec in schema.inputs.values() for dim in spec.dims}

    def dataset(self, sites: Mapping[str, Site], sampled: bool = True) -> xr.Dataset:
        """One Dataset of named variables, (chain, draw, plates, event dims) or without the first two."""
        variables: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        for site, (plates, values) in sites.items():
            shape = tuple(values.shape[1:] if sampled else values.shape)
            dims = tuple(map(_plain_name, (*plates, *self._event_dims(site, len(shape) - len(plates)))))
            self._check(site, dims, shape, sizes)
            name = _plain_name(site)
            if name in variables:
                raise SchemaError(f"{site}: found a second site that is called {name!r} without slashes; rename one")
            if sampled:
                variables[name] = (("chain", "draw", *dims), _split(values, self._num_chains))
            else:
                variables[name] = (dims, values.cpu().numpy())
        clash = sorted(set(variables) & set(sizes))
        if clash:
            raise SchemaError(f"{clash[0]}: found a site and a dim of this name; wanted different names")
        return xr.Dataset(variables, {dim: self._labels(dim, size) for dim, size in sizes.items()})

    def _check(self, site: str, dims: tuple[str, ...], shape: tuple[int, ...], sizes: dict[str, int]) -> None:
        check_dims(dims)
        repeated = sorted({d for d in dims if dims.count(d) > 1})
        if repeated:
            raise SchemaError(f"{site}: found dim {repeated[0]!r} twice in {dims}; wanted different names")
        for dim, size in zip(dims, shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise SchemaError(f"{site}: found size {size} of dim {dim!r}; wanted {sizes[dim]} as at other sites")

    def _event_dims(self, site: str, count: int) -> tuple[str, ...]:
        declared = self._schema.site_dims.get(site)
        if declared is None:
            return tuple(auto_dim(site, i) for i in range(count))
        if count == 0:  # pointwise log likelihoods have none
            return ()
        if len(declared) != count:
            raise SchemaError(f"{site}: found {count} event dims; wanted {len(declared)}, named {tuple(declared)}")
        return tuple(declared)

    def _labels(self, dim: str, size: int) -> np.ndarray:
        source = self._schema.labels.get(dim, dim)
        labels: Any = self._schema.coords.get(source)
        if labels is None and source in self._known and source in self._data.coords:
            labels = self._data[source].values
        if labels is None or len(labels) != size:
            return np.arange(size)
        return plain_labels(labels)


def _plain_name(name: str) -> str:
    return name.replace("/", ".")  # a slash starts a group
