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
from .export import name_of
from .inputs import Template
from .messengers import isolated
from .registry import AUTOGUIDES, REGISTERED
from .run import make_pair

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
    training = {key: value for key, value in fit.training.items() if key != "options"}
    tensors: dict[str, Any] = {
        "model": _state(fit.model),
        "guide": _state(fit.guide),
        "parameters": {} if fit.store is None else {k: v.detach() for k, v in fit.store["params"].items()},
        "training": training,
    }
    if fit.draws is not None:
        tensors["draws"] = fit.draws.values
        tensors["statistics"] = {k: torch.as_tensor(v) for k, v in fit.draws.statistics.items()}
    torch.save(tensors, folder / "state.pt")
    (folder / "fit.json").write_text(json.dumps(about, indent=1, default=_plain))
    return folder


def load(
    path: str | Path, model: Callable[..., Any] | None = None, guide: Callable[..., Any] | type | None = None
) -> Fit:
    """Read the fit in the folder `path`; see `Fit.load`."""
    about, tensors = _read(Path(path))
    template = Template.from_dict(about["template"])
    model = _rebuild("model", about["model"], model)
    schema = model.schema if about["schema"] is None else _schema(about["schema"])
    inputs = template.zeros(schema)
    if about["guide"] is not None:
        guide = _rebuild("guide", about["guide"], guide, model)
    with isolated(0) as store, pyro.validation_enabled(False), torch.no_grad():
        model, built, _ = make_pair(model, guide if about["guide"] is not None else lambda model: None, inputs)
        if built is not None:
            poutine.trace(built).get_trace(**inputs)
            poutine.trace(model).get_trace(**inputs)
        _fill("model", model, tensors["model"])
        _fill("guide", built, tensors["guide"])
        _fill_parameters(tensors["parameters"])
    draws = None
    fit_class = REGISTERED[about["kind"]]
    if "draws" in tensors:
        from .fit import StoredDraws

        draws = StoredDraws(tensors["draws"], {k: v.numpy() for k, v in tensors["statistics"].items()})
    history = [[x for x in row if not math.isnan(x)] for row in about["history"]]
    return fit_class(
        model, built, schema, template, draws=draws, history=history, settings=about["settings"], store=store,
        training=tensors["training"],
    )  # fmt: skip


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        about = json.loads((folder / "fit.json").read_text())
        found = about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{folder}: not a saved fit ({error})") from error
    if found != FORMAT:
        raise LoadError(f"{folder}: found format {found}; wanted {FORMAT}, the one that this version writes")
    if about.get("kind") not in REGISTERED:
        raise LoadError(f"{folder}: found a {about.get('kind')!r}; wanted one of {sorted(REGISTERED)}")
    try:
        tensors = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    except Exception as error:
        raise LoadError(f"{folder / 'state.pt'}: cannot be read as tensors ({error})") from error
    return about, tensors


def _describe(thing: Any) -> dict[str, Any]:
    name = name_of(thing)
    settings = thing.settings() if REGISTERED.get(name) is type(thing) else None
    return {"name": name, "settings": settings}


def _rebuild(role: str, saved: Mapping[str, Any], given: Any, model: Any = None) -> Any:
    name, settings = saved["name"], saved["settings"]
    if given is not None:
        found = given.__name__ if isinstance(given, type) else name_of(given)
        if found not in (name, "<lambda>"):
            raise LoadError(f"{role}: found {found!r}; wanted {name!r}, which the fit was made with")
        return given
    if settings is not None and name in REGISTERED:
        return REGISTERED[name].from_settings(settings)  # type: ignore[attr-defined]
    if role == "guide" and name in AUTOGUIDES:
        return AUTOGUIDES[name]
    raise LoadError(f"{role}: the fit was made with {name!r}, which cannot be rebuilt from a file; pass {role}=")


def _state(thing: Any) -> dict[str, Tensor]:
    return thing.state_dict() if isinstance(thing, torch.nn.Module) else {}


def _fill(role: str, thing: Any, state: Mapping[str, Tensor]) -> None:
    if not isinstance(thing, torch.nn.Module):
        if state:
            raise LoadError(f"{role}: found a plain function; wanted a module with {sorted(state)}")
        return
    try:
        thing.load_state_dict(state)
    except RuntimeError as error:
        raise LoadError(f"{role}: {name_of(thing)} does not fit the saved numbers ({error})") from error


def _fill_parameters(saved: Mapping[str, Tensor]) -> None:
    here = dict(pyro.get_param_store().named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in here.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if shapes != wanted:
        raise LoadError(f"parameters: found {shapes}; wanted {wanted}: another model or guide than was saved")
    for name, tensor in here.items():
        tensor.copy_(saved[name])


def _schema(saved: Mapping[str, Any]) -> Schema:
    inputs = {
        name: Input(None if spec["dims"] is None else tuple(spec["dims"]), spec["kind"], spec["observed"])
        for name, spec in saved["inputs"].items()
    }
    site_dims = {name: tuple(dims) for name, dims in saved["site_dims"].items()}
    rest = {key: saved[key] for key in ("normalised", "plate", "labels", "coords")}
    return Schema(inputs=inputs, site_dims=site_dims, **rest)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    raise SchemaError(f"settings: found {type(value).__name__}; wanted numbers, text, lists and mappings")
