"""Maximum a posteriori points from many starts at once: restarts are a leading tensor axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.parts.errors import DataError, NumericalError, SchemaError
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
        One rate, or one a site (``""`` for the rest, needed if a site is left out).
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
    DataError
        If a site that is named has no part in the density, or has no rate.
    SchemaError
        If the model has no plate of the name in `batch`.
    NumericalError
        If no restart ends at a finite log density.
    """
    climber = _Climber(density, starts, learning_rate, final_learning_rate, clip or {}, scale)
    buffers = BufferSchedules(density.model, schedules or {})
    rows = _rows(density, batch)
    history, interrupted = [], False
    with tqdm(total=num_steps, desc=label, disable=not progress) as bar:
        try:
            for step in range(num_steps):
                buffers.set(step / num_steps)
                with Supply(rows()):
                    value = density(climber.points(), jacobian=False)
                climber.step(value, step / num_steps)
                history.append(value.detach())
                bar.update()
                if step % 50 == 0:
                    bar.set_postfix_str(f"best {float(value.detach().max()):.5g}", refresh=False)
        except KeyboardInterrupt:
            interrupted = True
            if not history:
                raise
    buffers.set(1.0)
    points, final = climber.end()
    if not bool(torch.isfinite(final).any()):
        raise NumericalError(f"{label}: no restart ended at a finite log density after {len(history)} steps")
    return Maximum(points, final, torch.stack(history), interrupted)


def _rows(density: LogDensity, batch: tuple[str, int] | None) -> Callable[[], dict[str, Tensor]]:
    if batch is None:
        return dict
    plate, size = batch
    if plate not in density.plate_sizes:
        raise SchemaError(f"batch: found plates {sorted(density.plate_sizes)} in the model; wanted one named {plate!r}")
    total, device = density.plate_sizes[plate], density.device
    return dict if size >= total else lambda: {plate: torch.randperm(total, device=device)[:size]}


def _rate_of(rates: Mapping[str, float], site: str) -> float:
    if site not in rates and "" not in rates:
        raise DataError(f'learning_rate: found none for site {site!r}; wanted one, or one for the rest under ""')
    return rates[site] if site in rates else rates[""]


class _Climber:
    """Adam on vectors of several restarts, each of which goes back by itself when it leaves the finite numbers."""

    def __init__(
        self,
        density: LogDensity,
        starts: Tensor,
        learning_rate: float | Mapping[str, float],
        final_learning_rate: float,
        clip: Mapping[str, float],
        scale: float,
    ) -> None:
        slices = density.slices()
        rates = learning_rate if isinstance(learning_rate, Mapping) else {"": learning_rate}
        for what, names in (("learning_rate", set(rates) - {""}), ("clip", set(clip))):
            if names - set(slices):
                raise DataError(f"{what}: found sites {sorted(names - set(slices))}; wanted some of {sorted(slices)}")
        self.density, self.clip, self.scale = density, clip, scale
        self.leaves = {name: starts[:, where].clone().requires_grad_() for name, where in slices.items()}
        groups = [{"params": [leaf], "lr": _rate_of(rates, name)} for name, leaf in self.leaves.items()]
        self.optimizer = torch.optim.Adam(groups)
        starting = [_rate_of(rates, name) for name in slices]
        self.cosines = [Cosine(rate, min(final_learning_rate, rate)) for rate in starting]
        self.good = {name: leaf.detach().clone() for name, leaf in self.leaves.items()}
        self.damping = starts.new_ones(len(starts), 1)

    def points(self) -> Tensor:
        return torch.cat(list(self.leaves.values()), -1)

    def step(self, value: Tensor, done: float) -> None:
        """Go on from where `value` was found, or back where it or its gradient is not finite."""
        self.optimizer.zero_grad()
        (-value / self.scale).sum().backward()
        for group, cosine in zip(self.optimizer.param_groups, self.cosines, strict=True):
            group["lr"] = cosine(done)
        finite = torch.isfinite(value.detach()).unsqueeze(-1)
        for leaf in self.leaves.values():
            finite = finite & torch.isfinite(_gradient(leaf)).all(-1, keepdim=True)
        with torch.no_grad():
            self.damping = torch.where(finite, self.damping, self.damping / 2)
            for name, leaf in self.leaves.items():
                self._prepare(name, leaf, finite)
            self.optimizer.step()
            if bool((self.damping < 1).any()):
                for name, leaf in self.leaves.items():
                    leaf.copy_(self.good[name] + self.damping * (leaf - self.good[name]))

    def _prepare(self, name: str, leaf: Tensor, finite: Tensor) -> None:
        gradient = torch.where(finite, _gradient(leaf), torch.zeros_like(leaf))
        if name in self.clip:
            gradient = gradient * (self.clip[name] / gradient.norm(dim=-1, keepdim=True).clamp(min=self.clip[name]))
        leaf.grad = gradient
        self.good[name].copy_(torch.where(finite, leaf, self.good[name]))
        leaf.copy_(self.good[name])
        momentum = self.optimizer.state[leaf].get("exp_avg")
        if momentum is not None:
            momentum.mul_(finite)

    def end(self) -> tuple[Tensor, Tensor]:
        """Points and their log densities; those of the last finite step where the very last one was not."""
        points, good = self.points().detach(), torch.cat(list(self.good.values()), -1)
        with torch.no_grad():
            final = self.density(points, jacobian=False)
            if not bool(torch.isfinite(final).all()):
                points = torch.where(torch.isfinite(final).unsqueeze(-1), points, good)
                final = self.density(points, jacobian=False)
        return points, torch.where(torch.isfinite(final), final, torch.full_like(final, -torch.inf))


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
