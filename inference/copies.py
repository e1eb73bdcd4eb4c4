"""Copies of models and guides in the precision and on the device of the data: a user's objects are never changed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..models.parts.errors import SchemaError


def float_dtype(inputs: Mapping[str, Tensor]) -> torch.dtype:
    """The precision of the data: float64 if any input has it, else float32, else torch's default."""
    dtypes = {tensor.dtype for tensor in inputs.values() if tensor.is_floating_point()}
    if not dtypes:
        return torch.get_default_dtype()
    return torch.float64 if torch.float64 in dtypes else torch.float32


def copy_of(thing: Any) -> Any:
    """Deep copy with a readable error for modules that hold graphs.

    Raises
    ------
    SchemaError
        If Python cannot copy it.
    """
    guides = [
        m
        for owner in map(owner_of, thing if isinstance(thing, tuple) else (thing,))
        if owner is not None
        for m in owner.modules()
        if isinstance(m, AutoGuide)
    ]
    held = {id(guide): (guide._model, guide.master) for guide in guides}
    memo: dict[int, Any] = {}
    try:
        copied = copy.deepcopy(thing, memo)
        for guide in guides:
            memo[id(guide)]._model = copy.deepcopy(held[id(guide)][0], memo)
        return copied
    except (RuntimeError, TypeError) as error:
        raise SchemaError(
            f"{type(thing).__name__}: cannot be copied ({error}); pass a guide class or a function of `model` instead"
        ) from error
    finally:
        for guide in guides:  # Pyro's AutoGuides forget their model when they are copied
            guide._model, guide.master = held[id(guide)]


def is_factory(guide: Callable[..., Any] | type) -> bool:
    """Whether `guide` makes guides: a class, or a function of one argument named ``model``."""
    if isinstance(guide, type):
        return True
    if isinstance(guide, torch.nn.Module) or not callable(guide):
        return False
    return list(inspect.signature(guide).parameters) == ["model"]


def check_guide(guide: Callable[..., Any] | type, inputs: Mapping[str, Tensor]) -> None:
    """Refuse a plain function that neither makes a guide nor takes what the model takes.

    Raises
    ------
    SchemaError
        Naming its arguments.
    """
    if not inspect.isfunction(guide) or is_factory(guide):
        return
    parameters = inspect.signature(guide).parameters
    if any(p.kind == p.VAR_KEYWORD for p in parameters.values()) or set(inputs) <= set(parameters):
        return
    raise SchemaError(
        f"guide: found a function of {list(parameters)}; wanted the arguments of the model, {list(inputs)}, or one "
        "argument named 'model' of a function that makes a guide"
    )


def make_pair(
    model: Callable[..., Any], guide: Any, inputs: Mapping[str, Tensor], store: Any = None
) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """Copy model, guide and store together (they may share parts) and bring them to the data's precision and device.

    Parameters
    ----------
    model, guide
        As given to `svi`; a guide factory is called on the copy of the model.
    inputs
        Tensors of the data.
    store
        Parameter store state that belongs to an already fitted pair.
    """
    check_guide(guide, inputs)
    made = is_factory(guide)
    model, copied, store = copy_of((model, None if made else guide, store))
    for module in (model, copied):
        move_to(module, inputs)
    if made:
        copied = guide(model)
        owner = owner_of(copied)
        if owner is not None and inputs:  # its precision is its own affair
            owner.to(device=next(iter(inputs.values())).device)
    return model, copied, store


def no_guide(model: Callable[..., Any]) -> None:
    """The guide factory of a fit that has none."""


def owner_of(thing: Any) -> torch.nn.Module | None:
    """The module whose numbers a callable uses: itself, or the one that it is a method of."""
    thing = getattr(thing, "__self__", thing)
    return thing if isinstance(thing, torch.nn.Module) else None


def move_to(thing: Any, inputs: Mapping[str, Tensor]) -> None:
    """Bring a module to the precision and device of `inputs`; a plain function has neither."""
    module = owner_of(thing)
    if module is not None and inputs:
        floating = any(tensor.is_floating_point() for tensor in inputs.values())
        device = next(iter(inputs.values())).device
        module.to(device=device, dtype=float_dtype(inputs) if floating else None)


def fitted_parameters(modules: Mapping[str, torch.nn.Module]) -> dict[str, Tensor]:
    """What an optimiser is to work on: the current parameter store, and the modules' parameters that Pyro has not seen.

    Parameters
    ----------
    modules
        Model and guide by role, where they are modules.

    Raises
    ------
    SchemaError
        If there is nothing to fit, or a parameter belongs to a module outside both, which could not be copied.
    """
    found = dict(pyro.get_param_store().named_parameters())
    owned = {id(p) for module in modules.values() for p in module.parameters()}
    foreign = sorted(n for n, p in found.items() if isinstance(p, torch.nn.Parameter) and id(p) not in owned)
    if foreign:
        raise SchemaError(
            f"parameter {foreign[0]!r}: found it in a module outside model and guide, which a fit would change behind "
            "your back; wanted modules as attributes of a torch.nn.Module that is the model or the guide"
        )
    known = {id(p) for p in found.values()}
    for role, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                known.add(id(parameter))
                found[f"{role}.{name}"] = parameter
    if not found:
        raise SchemaError("guide: found no parameters; wanted a guide with something to fit")
    return found
