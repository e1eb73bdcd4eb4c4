"""Minibatches: whether a model and a guide can run on some of the rows of a plate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import AutoContinuous

from ..models.parts.errors import SchemaError
from .messengers import is_plate, latent_sites
from .options import check_counts


def rows_to_choose_from(plate: str, size: int, guide: Callable[..., Any], guide_trace: Any, trace: Any) -> int:
    """Number of rows that minibatches are drawn from, 0 when a step takes all of them.

    Parameters
    ----------
    plate, size
        The plate and how many of its rows a step takes.
    guide, guide_trace, trace
        The guide, and traces of guide and model on all rows.

    Raises
    ------
    DataError
        If `size` is not a positive whole number.
    SchemaError
        If the model has no such plate, or the guide is a joint one over rows.
    """
    check_counts(batch_size=size)
    plates = {n: s["fn"].size for n, s in trace.nodes.items() if s["type"] == "sample" and is_plate(s)}
    if plate not in plates:
        raise SchemaError(f"batch_size: found plates {sorted(plates)} in the model; wanted one named {plate!r}")
    if size >= plates[plate]:
        return 0
    local = [n for n, s in latent_sites(trace).items() if any(f.name == plate for f in s["cond_indep_stack"])]
    local = [n for n in local if n in guide_trace.nodes]
    if local and isinstance(guide, AutoContinuous):
        raise SchemaError(
            f"batch_size: {type(guide).__name__} is a joint guide and cannot subsample {local[0]!r}, which "
            "has one value a row; use AutoNormal with create_plates, an amortised guide, or no minibatches"
        )
    return int(plates[plate])


def cannot_subsample(plate: str, size: int, error: Exception) -> SchemaError:
    """What to say when a step on some of the rows failed."""
    return SchemaError(
        f"batch_size: model and guide do not run on {size} rows of the plate {plate!r} ({error}); wanted "
        "pyro.subsample of the data inside the plate, and a guide whose plate can be subsampled: "
        f"AutoNormal(model, create_plates=lambda *args, **kwargs: pyro.plate({plate!r}, n, dim=-1))"
    )
