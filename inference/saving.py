"""Fits on disk: tensors that load without pickle, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..models.parts.errors import LoadError, SchemaError
from ..models.schema import Input, Schema
from .copies import float_dtype, is_factory, make_pair, no_guide, owner_of
from .export import name_of
from .inputs import Template
from .messengers import isolated, latent_sites
from .registry import AUTOGUIDES, REGISTERED
from .soundness import check_kinds, check_no_nan, check_regular, check_sizes
from .stored import StoredDraws

if TYPE_CHECKING:
    from .fit import Fit

FORMAT = 1


def save(fit: Fit, path: str | Path) -> Path:
    """Write `fit` to the folder `path`."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("embergraph", "torch", "pyro-ppl", "xarray", "arviz")},
        "kind": type(fit).__name__,
        "model": _describe(fit.model),
        "guide": None if fit.guide is None else _describe(fit.guide),
        "schema": None if isinstance(getattr(fit.model, "schema", None), Schema) else asdict(fit.schema),
        "template": fit.template.to_dict(),
        "settings": fit.settings,
        "history": fit.history.values.tolist(),
    }
    tensors: dict[str, Any] = {
        "model": _state(fit.model),
        "guide": _state(fit.guide),
        "parameters": _own_parameters(fit.store, fit.model, fit.guide),
        "training": {key: value for key, value in fit.training.items() if key != "options"},
    }
    if fit.draws is not None:
        tensors["draws"] = {name: value.clone() for name, value in fit.draws.values.items()}
        tensors["statistics"] = {k: torch.as_tensor(v) for k, v in fit.draws.statistics.items()}
    text = json.dumps(about, indent=1, default=_plain)
    (folder / "fit.json").unlink(missing_ok=True)  # a folder without it is no fit: never half an old and half a new one
    (folder / "state.pt").unlink(missing_ok=True)  # it may be a link to a file of someone else
    torch.save(tensors, folder / "state.pt")
    (folder / "fit.json").write_text(text)
    return folder


def load(
    path: str | Path, model: Callable[..., Any] | None = None, guide: Callable[..., Any] | type | None = None
) -> Fit:
    """Read the fit in the folder `path`; see `Fit.load`."""
    about, tensors = _read(Path(path))
    try:
        return _restore(about, tensors, model, guide)
    except LoadError:
        raise
    except Exception as error:  # whatever another model or a damaged file leads to
        hint = "; pass guide= as it was given to the fit" if guide is None and about.get("guide") else ""
        told = next(iter(str(error).splitlines()), "")
        raise LoadError(f"{path}: cannot be restored, {type(error).__name__}: {told}{hint}") from error


def _restore(about: Mapping[str, Any], tensors: Mapping[str, Any], model: Any, guide: Any) -> Fit:
    template = Template.from_dict(about["template"])
    check_sizes(template.variables)
    has_guide = about["guide"] is not None
    with isolated(0):  # new modules draw random numbers
        model = _rebuild("model", about["model"], model)
        guide = _rebuild("guide", about["guide"], guide) if has_guide else no_guide
    schema = model.schema if about["schema"] is None else _schema(about["schema"])
    inputs = template.zeros(schema)
    with isolated(0, dtype=float_dtype(inputs)) as store, pyro.validation_enabled(False), torch.no_grad():
        model, built, _ = make_pair(model, guide, inputs)
        if has_guide:
            _check_name("guide", about["guide"], built)
            given = poutine.replay(model, trace=poutine.trace(built).get_trace(**inputs))
        trace = poutine.trace(given if has_guide else model).get_trace(**inputs)
        _fill("model", model, tensors["model"])
        _fill("guide", built, tensors["guide"])
        _fill_parameters(_own_parameters(pyro.get_param_store().get_state(), model, built), tensors["parameters"])
    draws = None
    if "draws" in tensors:
        check_no_nan("draws", tensors["draws"])
        draws = StoredDraws(tensors["draws"], {k: v.numpy() for k, v in tensors["statistics"].items()})
        _check_sites(draws, trace)
    history = [[x for x in row if not math.isnan(x)] for row in about["history"]]
    return REGISTERED[about["kind"]](
        model, built, schema, template, draws=draws, history=history, settings=about["settings"], store=store,
        training=tensors["training"],
    )  # fmt: skip


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    for name in ("fit.json", "state.pt"):
        check_regular(folder / name)
    try:
        about = json.loads((folder / "fit.json").read_text())
        found = about["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(f"{folder}: not a saved fit ({error})") from error
    if found != FORMAT:
        raise LoadError(f"{folder}: found format {found}; wanted {FORMAT}, the one that this version writes")
    from .fit import Fit

    if not issubclass(REGISTERED.get(str(about.get("kind")), object), Fit):
        raise LoadError(f"{folder}: found a {about.get('kind')!r}; wanted a class of fits")
    try:
        tensors = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    except Exception as error:
        raise LoadError(f"{folder / 'state.pt'}: cannot be read as tensors ({error})") from error
    return about, tensors


def _describe(thing: Any) -> dict[str, Any]:
    name = name_of(thing)
    known: Any = REGISTERED.get(name)
    settings = thing.settings() if known is type(thing) else None
    return {"name": name, "settings": settings}


def _rebuild(role: str, saved: Mapping[str, Any], given: Any) -> Any:
    name, settings = saved["name"], saved["settings"]
    if given is not None:
        if role == "model" or not is_factory(given):
            _check_name(role, saved, given)
        return given
    if settings is not None and name in REGISTERED:
        return REGISTERED[name].from_settings(settings)  # type: ignore[attr-defined]
    if role == "guide" and name in AUTOGUIDES:
        return AUTOGUIDES[name]
    raise LoadError(f"{role}: the fit was made with {name!r}, which cannot be rebuilt from a file; pass {role}=")


def _check_name(role: str, saved: Mapping[str, Any], found: Any) -> None:
    if name_of(found) != saved["name"]:
        raise LoadError(f"{role}: found {name_of(found)!r}; wanted {saved['name']!r}, which the fit was made with")


def _check_sites(draws: StoredDraws, trace: Any) -> None:
    latent = {n: s for n, s in latent_sites(trace).items() if s["infer"].get("enumerate") != "parallel"}
    found = {name: site["value"].numel() for name, site in latent.items()}
    wanted = {name: value[0, 0].numel() for name, value in draws.values.items()}
    if {name: found.get(name) for name in wanted} != wanted or set(found) - set(wanted):
        raise LoadError(f"model: found latent sites of sizes {found}; wanted {wanted}: another model than was saved")
    check_kinds("draws", {name: site["value"] for name, site in latent.items()}, draws.values)


def _state(thing: Any) -> dict[str, Tensor]:
    module = owner_of(thing)
    return {} if module is None else dict(module.state_dict())


def _fill(role: str, thing: Any, state: Mapping[str, Tensor]) -> None:
    module = owner_of(thing)
    if module is None:
        if state:
            raise LoadError(f"{role}: found a plain function; wanted a module with {sorted(state)}")
        return
    check_kinds(role, module.state_dict(), state)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise LoadError(f"{role}: {name_of(thing)} does not fit the saved numbers ({error})") from error
    check_no_nan(role, dict(module.named_parameters()))


def _own_parameters(store: Any, *callables: Any) -> dict[str, Tensor]:
    """Parameters that live in the store alone, not in a module whose state is saved."""
    owned = {id(p) for module in map(owner_of, callables) if module is not None for p in module.parameters()}
    return {} if store is None else {n: p.detach() for n, p in store["params"].items() if id(p) not in owned}


def _fill_parameters(here: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in here.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if shapes != wanted:
        raise LoadError(f"parameters: found {shapes}; wanted {wanted}: another model or guide than was saved")
    check_kinds("parameters", here, saved)
    check_no_nan("parameters", saved)
    for name, tensor in here.items():
        tensor.copy_(saved[name])


def _schema(saved: Mapping[str, Any]) -> Schema:
    inputs = {
        name: Input(tuple(spec["dims"]), spec["kind"], spec["observed"]) for name, spec in saved["inputs"].items()
    }
    site_dims = {name: tuple(dims) for name, dims in saved["site_dims"].items()}
    rest = {key: saved[key] for key in ("normalised", "plate", "labels", "coords")}
    return Schema(inputs=inputs, site_dims=site_dims, **rest)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    raise SchemaError(f"settings: found {type(value).__name__}; wanted numbers, text, lists and mappings")
