"""What a model takes and what its sites are called: the one place where names and dims are declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["float", "int", "bool"]


@dataclass(frozen=True)
class Input:
    """One argument of a model's ``forward`` and the variable of the Dataset that fills it.

    Attributes
    ----------
    dims
        Named dims, in the order of the tensor's axes.
    kind
        What the numbers are; floats keep their precision, integers become int64.
    observed
        Whether this is what the model explains. An observed input given as None is drawn by the model.
    """

    dims: tuple[str, ...]
    kind: Kind = "float"
    observed: bool = False


@dataclass(frozen=True)
class Schema:
    """Inputs of a model and dims of its sites.

    Attributes
    ----------
    inputs
        The model's arguments by name; each names a variable of the Dataset.
    normalised
        False for an energy without a prior that can be sampled: point estimates only.
    site_dims
        Event dims of sample and deterministic sites; plate dims are named by their plates.
    plate
        The plate that minibatches subsample; its sites are local to the rows of the data.
    labels
        Dims that take the labels of another dim of the data (``regulator`` and ``target`` those of ``gene``).
    coords
        Labels of dims that the data do not have (archetypes, latents).
    """

    inputs: Mapping[str, Input]
    normalised: bool = True
    site_dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plate: str = "cell"
    labels: Mapping[str, str] = field(default_factory=dict)
    coords: Mapping[str, list[str] | list[int]] = field(default_factory=dict)

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the observed inputs."""
        return tuple(name for name, spec in self.inputs.items() if spec.observed)
