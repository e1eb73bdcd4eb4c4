"""What a run minimises: the ELBO of a model and a guide, or the guide's own objective."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from ..models.parts.errors import DataError
from .density import max_plate_nesting
from .messengers import quiet, sample_sites, site_not_finite

T = TypeVar("T")


class Objective:
    """The loss of a model and a guide on their inputs, on all rows or those that a `Supply` gives.

    Parameters
    ----------
    model, guide
        Copies of a run's own.
    inputs
        The model's arguments.
    elbo
        Pyro ELBO object; None lets `choose` take one.
    """

    def __init__(self, model: Callable[..., Any], guide: Any, inputs: Mapping[str, Tensor], elbo: Any) -> None:
        self.model, self.guide, self.inputs, self.elbo = model, guide, inputs, elbo

    def traces(self) -> tuple[Any, Any]:
        """Of the guide, and of the model at the guide's values; with Pyro's checks, see `validated`."""
        return self._validated(self._traces)

    def _traces(self) -> tuple[Any, Any]:
        guide_trace = poutine.trace(self.guide).get_trace(**self.inputs)
        return guide_trace, poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(**self.inputs)

    def choose(self, guide_trace: Any, trace: Any) -> None:
        """Take the ELBO that the sites need, and try it."""
        enumerated = [n for n, s in sample_sites(trace).items() if s["infer"].get("enumerate") == "parallel"]
        nesting = max(max_plate_nesting(trace), max_plate_nesting(guide_trace))
        kind = TraceEnum_ELBO if enumerated else Trace_ELBO
        self.elbo = self.elbo or kind(max_plate_nesting=nesting)
        self._validated(self.loss)

    def _validated(self, run: Callable[[], T]) -> T:
        """Run with Pyro's checks; without, where a number that is not finite trips them (the first step names it)."""
        with torch.no_grad(), quiet():
            try:
                with pyro.validation_enabled(True):
                    return run()
            except ValueError as error:
                text = str(error)
                if "within the support" in text and not {"nan", "inf"} & set(re.findall("[a-z]+", text)):
                    raise DataError(_impossible(text)) from error
                with pyro.validation_enabled(False):
                    if not self.culprit():
                        raise
                    return run()

    def loss(self) -> float:
        """One evaluation with fresh draws."""
        objective = getattr(self.guide, "objective", None)
        if objective is not None:
            return float(objective(self.model, self.inputs))
        return float(self.elbo.loss(self.model, self.guide, **self.inputs))

    def loss_and_gradients(self, parameters: Mapping[str, Tensor]) -> float:
        """One evaluation, whose gradients are added to those of the parameters."""
        objective = getattr(self.guide, "objective", None)
        if objective is None:
            name, parameter = next(iter(parameters.items()))

            def announced(**inputs: Tensor) -> Any:
                """The guide with one parameter named to Pyro, whose ELBOs else take no gradients of plain modules."""
                pyro.param(name, parameter)
                return self.guide(**inputs)

            return float(self.elbo.loss_and_grads(self.model, announced, **self.inputs))
        loss = objective(self.model, self.inputs)
        loss.backward()
        return float(loss.detach())

    def culprit(self) -> str:
        """The first site that is not finite; empty if there is none."""
        with torch.no_grad(), suppress(RuntimeError, ValueError, ArithmeticError):
            return site_not_finite(*self._traces())
        return ""


def _impossible(text: str) -> str:
    """What is wrong, out of Pyro's words, which go on with all values."""
    site, law = re.search(r"at site '([^']*)'", text), re.search(r"support \((.*?)\) of the distribution (\w+)", text)
    named = f"site {site[1]!r}" if site else "a site"
    if law is None:
        return f"{named}: {text.splitlines()[0]}"
    return f"{named}: found values that {law[2]} cannot take; wanted {law[1]}"
