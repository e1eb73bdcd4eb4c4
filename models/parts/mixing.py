"""Mixing: from the logits of a cell to the weights of its archetypes.

| name | Z | exact zeros | sum |
|---|---|---|---|
| softmax | exp(eta_k) / sum (the paper) | none | 1 |
| entmax15 | 1.5-entmax (Peters et al. 2019) | yes | 1 |
| sparsemax | projection on the simplex (Martins and Astudillo 2016) | yes | 1 |
| identity | eta | | any, any sign |

With exact zeros archetypes of conflicting orders can take turns: a cell of one archetype alone has its DAG. Under
``identity`` weights may be negative and no union of the archetypes bounds the cycles of a cell.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .gates import GATE_WEIGHTS

__all__ = ["MIXING"]


def _identity(logits: Tensor) -> Tensor:
    return logits


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": GATE_WEIGHTS["softmax"],
    "entmax15": GATE_WEIGHTS["entmax15"],
    "sparsemax": GATE_WEIGHTS["sparsemax"],
    "identity": _identity,
}
