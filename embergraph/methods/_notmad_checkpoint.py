"""Finished stages of NOTMAD's plan in a file: a run that was killed goes on after the last of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..inference.checkpoint import Checkpoint
from ..inference.density import LogDensity
from ..inference.fingerprints import fingerprint
from ..inference.maximum import Maximum
from ..inference.messengers import isolated, latent_sites, rng_state, set_rng_state
from ..models.parts.errors import LoadError
from ._notmad_start import central_point

if TYPE_CHECKING:
    from ..models.notmad import NOTMAD
    from .notmad import NOTMADFit

Numbers = dict[str, Any]
"""Tensors by name, or such dicts of them."""

SVI_EVERY = 25  # steps of the guide between writes; each may take seconds


class Stages:
    """The stages of one run, each done once however often the run is stopped.

    What a stage came to is stored with the state of the generators at its end, so that the next one draws the numbers
    that it would have drawn.

    Parameters
    ----------
    path
        The file; None stores nothing.
    identity
        What must be the same for the stages in a file to be taken over.
    device
        Where the numbers are wanted.

    Raises
    ------
    LoadError
        If the file is of another run, or no checkpoint, or only the state of the guide is left.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any], device: torch.device) -> None:
        self._saved, self._device = Checkpoint(path, identity, every=1), device
        self.of_svi = None if path is None else Path(f"{path}.svi")
        self._done: dict[str, Any] = self._saved.read() or {}
        if self.of_svi is not None and self.of_svi.exists() and not self._done:  # by its model's name it may be any
            raise LoadError(f"checkpoint {path}: found only {self.of_svi}; wanted both files or none")

    def once(self, name: str, stage: Callable[[], Numbers]) -> Numbers:
        """What a stage comes to, from the file or computed now."""
        if name in self._done:
            return self._saved.restored(lambda: self._again(name))
        found: Numbers = _moved(stage(), self._device)
        if self._saved.path is not None:
            self._done[name] = {"found": found, "rng": list(rng_state())}
            self._saved.write(self._done)
        return found

    def search(
        self, model: NOTMAD, inputs: Mapping[str, Tensor], stage: Callable[[], tuple[LogDensity, Maximum]]
    ) -> tuple[LogDensity, Maximum]:
        """Stage 1: the density of `model` and its maximum, with the buffers of `model` that schedules have moved."""
        if "search" in self._done:
            density = LogDensity(model, inputs, {"encoder_log_amplitude": model.encoder.location.new_zeros(())})
            return density, self._saved.restored(lambda: self._searched_again(model, density))
        density, found = stage()
        if not found.interrupted:
            numbers = {"points": found.points, "log_density": found.log_density, "history": found.history}
            self.once("search", lambda: {**numbers, "model": dict(model.state_dict())})
        return density, found

    def remove(self) -> None:
        """Delete the file of a run that has ended."""
        self._saved.remove()

    def _again(self, name: str) -> Numbers:
        found: Numbers = _moved(self._done[name]["found"], self._device)
        set_rng_state(tuple(self._done[name]["rng"]))
        return found

    def _searched_again(self, model: NOTMAD, density: LogDensity) -> Maximum:
        kept = self._again("search")
        model.load_state_dict(kept["model"])
        if kept["points"].shape != (len(kept["log_density"]), density.num_dims):
            raise LoadError(
                f"checkpoint {self._saved.path}: found points {tuple(kept['points'].shape)} of another model"
            )
        return Maximum(kept["points"], kept["log_density"], kept["history"], interrupted=False)


def identity_of(
    model: NOTMAD, inputs: Mapping[str, Tensor], start: NOTMADFit | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What tells one run from another: options, data, the model with its priors, and the fit that it starts from."""
    with isolated(0, dtype=model.encoder.location.dtype), torch.no_grad(), pyro.validation_enabled(False):
        drawn = latent_sites(poutine.trace(model).get_trace(**inputs))  # priors that have no description are told by it
    numbers = {**model.state_dict(), **{f"{name} drawn": site["value"] for name, site in drawn.items()}}
    described = model.settings() or [repr(model), model.form, model.noise, model.mixing]
    told = {
        "routine": "notmad",
        **options,
        "data": fingerprint(inputs),
        "model": described,
        "numbers": fingerprint(numbers),
    }
    if start is not None:
        told["start"] = fingerprint({**central_point(start), **start.model.state_dict()})
    return told


def _moved(numbers: Any, device: torch.device) -> Any:
    if isinstance(numbers, dict):
        return {name: _moved(value, device) for name, value in numbers.items()}
    return numbers.detach().to(device)
