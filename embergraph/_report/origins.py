"""Numbers that remember which sites and inputs they were computed from, to name the parents of a prior.

As ``pyro.ops.provenance``, but tensors that are only broadcast together keep their own origins, and a tensor that is
made in the shape of another one has none of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..inference.messengers import is_plate

SHAPE_ONLY = frozenset(
    ["zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty", "size"]
)
FILLED = frozenset(["full_like", "new_full", "new_tensor"])


class Traced(torch.Tensor):
    """A tensor with the names that it was computed from; `traced` makes one."""

    plain: Tensor
    names: frozenset[str]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute on plain tensors; the result comes from everything that went in."""
        kwargs = kwargs or {}
        result = func(*untraced(args), **untraced(kwargs))
        name = getattr(func, "__name__", "")
        if name == "broadcast_tensors":
            given = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else args
            return type(result)(traced(r, origins(g)) for r, g in zip(result, given, strict=True))
        if name in SHAPE_ONLY:
            return result
        return traced(result, origins((args[1:] if name in FILLED else args, kwargs)))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Traced({sorted(self.names)}, {self.plain!r})"


def traced(value: Any, names: frozenset[str]) -> Any:
    """The same tensors, or containers of tensors, with names."""
    if isinstance(value, Tensor):
        if not names:
            return value
        made = value.as_subclass(Traced)
        made.plain, made.names = value, names
        return made
    if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
        parts = [traced(part, names) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def untraced(value: Any) -> Any:
    """The same without names."""
    if isinstance(value, Traced):
        return value.plain
    if isinstance(value, list | tuple):
        parts = [untraced(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: untraced(part) for key, part in value.items()}
    return value


def origins(value: Any) -> frozenset[str]:
    """Names that a tensor, or the tensors in a container, come from."""
    if isinstance(value, Traced):
        return value.names
    if isinstance(value, list | tuple):
        return frozenset().union(*map(origins, value))
    if isinstance(value, dict):
        return frozenset().union(*map(origins, value.values()))
    return frozenset()


class TraceOrigins(Messenger):
    """Let the values of sites and parameters remember their own names, and forget where they come from."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_plate(msg):
            msg["value"] = traced(untraced(msg["value"]), frozenset({msg["name"]}))

    def _pyro_post_param(self, msg: Any) -> None:
        msg["value"] = traced(untraced(msg["value"]), frozenset({msg["name"]}))
