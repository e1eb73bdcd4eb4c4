"""The parameters of a run, their optimiser, and the last values that are known to be good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.parts.errors import SchemaError
from .options import Options
from .soundness import check_kinds, check_no_nan

RATE = "learning_rate"


class Descent:
    """Steps of an optimiser that can be taken back.

    Parameters
    ----------
    parameters
        What is fitted, by name.
    options
        How to optimise.
    """

    def __init__(self, parameters: Mapping[str, Tensor], options: Options) -> None:
        self.parameters, self.options = dict(parameters), options
        self.optimizer = options.optimizer_of(self.parameters)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._good = [p.detach().clone() for p in self.parameters.values()]

    def start(self, done: float) -> None:
        """Forget the gradients of the last step; set the rates for the share `done` of the steps."""
        if RATE in self.options.schedules:
            factor = self.options.schedules[RATE](done)
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * factor
        self.optimizer.zero_grad()

    def clip(self) -> bool:
        """Bound the gradient; whether it is finite."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.options.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.options.clip_norm)
        else:
            norm = torch.stack(torch._foreach_norm(gradients)).sum() if gradients else torch.zeros(())
        return bool(torch.isfinite(norm))

    def at_fault(self) -> str:
        """The first parameter whose gradient is not finite."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        faults = (f"parameter {name!r}" for name, g in gradients.items() if not bool(torch.isfinite(g).all()))
        return next(faults, "no single parameter")

    @torch.no_grad()
    def step(self) -> None:
        """Take the values as good ones, which loss and gradient must have shown, and go on from them."""
        torch._foreach_copy_(self._good, [p.detach() for p in self.parameters.values()])
        self.optimizer.step()

    @torch.no_grad()
    def go_back(self) -> None:
        """Put back the last good values."""
        for tensor, good in zip(self.parameters.values(), self._good, strict=True):
            tensor.copy_(good)

    def start_afresh(self, parameters: Iterable[Tensor]) -> None:
        """Forget what the optimiser knows of some parameters."""
        for parameter in parameters:
            self.optimizer.state.pop(parameter, None)

    def values(self) -> dict[str, Tensor]:
        """What the parameters are; not copies."""
        return {name: tensor.detach().cpu() for name, tensor in self.parameters.items()}

    def state(self) -> dict[str, Any]:
        """What `restore` needs; not copies."""
        return {
            "parameters": self.values(),
            "good": {name: tensor.cpu() for name, tensor in self._named_good().items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state, whose tensors the optimiser goes on working on.

        Raises
        ------
        SchemaError
            If the state has other parameters.
        """
        fill("parameters", self.parameters, state)
        fill("good", self._named_good(), state)
        check_no_nan("good", self._named_good())
        self.optimizer.load_state_dict(state["optimizer"])

    def _named_good(self) -> dict[str, Tensor]:
        return dict(zip(self.parameters, self._good, strict=True))


@torch.no_grad()
def fill(key: str, here: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Copy saved numbers into those that are here.

    Parameters
    ----------
    key
        What they are called in `state`.
    here, state
        Tensors by name, and a saved state.

    Raises
    ------
    SchemaError
        If there are others than were saved; nothing is copied then.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in here.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state[key].items()}
    if shapes != found:
        raise SchemaError(f"state: found {key} {found}; wanted {shapes}")
    check_kinds(key, here, state[key])
    for name, tensor in here.items():
        tensor.copy_(state[key][name])
