"""Maximum a posteriori points from many starts at once: restarts are a leading tensor axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.parts.errors import NumericalError
from .density import LogDensity
from .messengers import Supply
from .schedules import BufferSchedules, Cosine, Schedule

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Maximum:
    """Result of `maximize`.

    Attributes
    ----------
    points
        Unconstrained vectors, one a restart.
    log_density
        Their final log densities, every schedule at its end.
    history
        Log density of every restart at every step.
    interrupted
        Whether Ctrl-C ended it early.
    """

    points: Float[Tensor, "restart dim"]
    log_density: Float[Tensor, " restart"]
    history: Float[Tensor, "step restart"]
    interrupted: bool

    @property
    def best(self) -> int:
        """The restart with the highest final log density."""
        return int(self.log_density.argmax())


def maximize(
    density: LogDensity,
    starts: Float[Tensor, "restart dim"],
    *,
    num_steps: int,
    learning_rate: float | Mapping[str, float] = 1e-2,
    final_learning_rate: float = 1e-4,
    schedules: Mapping[str, Schedule] | None = None,
    clip: Mapping[str, float] | None = None,
    scale: float = 1.0,
    batch: tuple[str, int] | None = None,
    progress: bool = True,
    label: str = "MAP",
) -> Maximum:
    """Climb the log density (without Jacobian) by Adam with cosine decay, all restarts in one computation.

    Parameters
    ----------
    density
        What to maximise.
    starts
        Unconstrained starting vectors.
    num_steps
        Steps of every restart.
    learning_rate
        One rate, or one a site (``""`` for the rest).
    final_learning_rate
        Where the cosine ends.
    schedules
        Values of buffers of ``density.model`` over the share of steps done.
    clip
        Largest gradient norm of a site, for each restart by itself, after division by `scale`.
    scale
        The objective is divided by it (number of cells), which gives `clip` its unit.
    batch
        Name of a plate and number of its rows in a step (fresh rows each step); all rows unless given.
    progress, label
        Progress bar and its label.

    Returns
    -------
    Maximum
        All restarts; a restart whose density leaves the finite numbers goes back one step and on with half its rate.

    Raises
    ------
    NumericalError
        If no restart ends at a finite log density.
    """
    rates = learning_rate if isinstance(learning_rate, Mapping) else {"": learning_rate}
    leaves = {name: starts[:, where].clone().requires_grad_() for name, where in density.slices().items()}
    groups = [{"params": [leaf], "lr": rates.get(name, rates.get("", 1e-2))} for name, leaf in leaves.items()]
    optimizer = torch.optim.Adam(groups)
    cosines = [Cosine(group["lr"], min(final_learning_rate, group["lr"])) for group in groups]
    buffers = BufferSchedules(density.model, schedules or {})
    good = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    damping = starts.new_ones(len(starts), 1)
    history, interrupted = [], False
    with pyro.validation_enabled(False), tqdm(total=num_steps, desc=label, disable=not progress) as bar:
        try:
            for step in range(num_steps):
                buffers.set(step / num_steps)
                for group, cosine in zip(optimizer.param_groups, cosines, strict=True):
                    group["lr"] = cosine(step / num_steps)
                with Supply(_rows(density, batch)):
                    value = density(torch.cat(list(leaves.values()), -1), jacobian=False)
                history.append(value.detach())
                optimizer.zero_grad()
                (-value / scale).sum().backward()
                finite = torch.isfinite(value.detach()).unsqueeze(-1)
                _clip_gradients(leaves, finite, clip or {})
                damping = torch.where(finite, damping, damping / 2)
                _keep_good(leaves, good, finite)
                optimizer.step()
                _damp(leaves, good, damping)
                bar.update()
                if step % 50 == 0:
                    bar.set_postfix_str(f"best {float(value.detach().max()):.5g}", refresh=False)
        except KeyboardInterrupt:
            interrupted = True
        buffers.set(1.0)
        points = torch.cat([leaf.detach() for leaf in leaves.values()], -1)
        with torch.no_grad():
            final = density(points, jacobian=False)
    final = torch.where(torch.isfinite(final), final, torch.full_like(final, -torch.inf))
    if not bool(torch.isfinite(final).any()):
        raise NumericalError(f"{label}: no restart ended at a finite log density after {len(history)} steps")
    return Maximum(points, final, torch.stack(history), interrupted)


def _rows(density: LogDensity, batch: tuple[str, int] | None) -> dict[str, Tensor]:
    if batch is None or batch[1] >= density.plate_sizes[batch[0]]:
        return {}
    return {batch[0]: torch.randperm(density.plate_sizes[batch[0]])[: batch[1]]}


def _clip_gradients(leaves: Mapping[str, Tensor], finite: Tensor, clip: Mapping[str, float]) -> None:
    for name, leaf in leaves.items():
        grad = torch.where(finite, leaf.grad, torch.zeros_like(leaf))
        if name in clip:
            norm = grad.norm(dim=-1, keepdim=True)
            grad = grad * (clip[name] / norm.clamp(min=clip[name]))
        leaf.grad = torch.nan_to_num(grad, nan=0.0)


def _keep_good(leaves: Mapping[str, Tensor], good: Mapping[str, Tensor], finite: Tensor) -> None:
    with torch.no_grad():
        for name, leaf in leaves.items():
            good[name].copy_(torch.where(finite, leaf, good[name]))
            leaf.copy_(good[name])


def _damp(leaves: Mapping[str, Tensor], good: Mapping[str, Tensor], damping: Tensor) -> None:
    if bool((damping < 1).any()):
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(good[name] + damping * (leaf - good[name]))
