"""Modules that a settings file may name: families of parts, each with its kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import nn

from .errors import LoadError


class Part(nn.Module):
    """A module of a family, such as the decoders, whose kinds are looked up by name.

    A direct subclass with a `family` starts one; subclasses of that with a `kind` belong to it.

    Attributes
    ----------
    family
        What the family is called in messages.
    kinds
        The classes of the family by kind.
    kind
        Name of the class in its family; a class without one cannot be rebuilt from a file.
    """

    family: ClassVar[str]
    kinds: ClassVar[dict[str, Any]]
    kind: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "family" in cls.__dict__:
            cls.kinds = {}
        if "kind" in cls.__dict__:
            cls.kinds[cls.kind] = cls

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        return {"kind": self.kind}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Make a part of the described kind and shapes, which the saved state then fills.

        Raises
        ------
        LoadError
            If the family has no such kind.
        """
        arguments = {key: value for key, value in settings.items() if key != "kind"}
        if settings.get("kind") not in cls.kinds:
            raise LoadError(f"{cls.family}: found {settings.get('kind')!r}; wanted one of {sorted(cls.kinds)}")
        made: Self = cls.kinds[settings["kind"]].from_arguments(arguments)
        return made

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """Make a part of this class from its description without the kind."""
        return cls(**arguments)


def described(known: Mapping[str, Any], part: Any) -> dict[str, Any] | None:
    """Settings of a part; None if it is missing, of a class of the user's own, or holds something without a name."""
    return part.settings() if type(part) in known.values() else None
