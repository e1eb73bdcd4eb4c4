"""Files that hold the state of a run so that it can go on after it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..models.parts.errors import LoadError, SchemaError
from .soundness import check_regular

FORMAT = 2
T = TypeVar("T")


class Checkpoint:
    """State of a routine on disk, written whole or not at all.

    Parameters
    ----------
    path
        The file; None switches checkpoints off.
    settings
        What must be the same for a checkpoint to be resumed.
    every
        Steps between writes.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any], every: int) -> None:
        self.path = None if path is None else Path(path)
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self.every = every

    def due(self, step: int) -> bool:
        """Whether the state after `step` is to be written."""
        return self.path is not None and step % self.every == 0

    def write(self, state: Mapping[str, Any]) -> None:
        """Write the state to a file beside, then put it into place."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".part")
        beside.unlink(missing_ok=True)  # left by a run that was killed, or a link to a file of someone else
        torch.save({"format": FORMAT, "settings": self.settings, "state": dict(state)}, beside)
        os.replace(beside, self.path)

    def read(self) -> dict[str, Any] | None:
        """The state to go on from, if there is a file.

        Raises
        ------
        LoadError
            If it is not ours, or of a run with other settings.
        """
        if self.path is None or not self.path.exists():
            return None
        check_regular(self.path)
        try:
            saved = torch.load(self.path, weights_only=True, map_location="cpu")
            found, settings, state = saved["format"], saved["settings"], saved["state"]
        except Exception as error:
            raise LoadError(f"checkpoint {self.path}: not a checkpoint of embergraph ({error})") from error
        if found != FORMAT:
            raise LoadError(f"checkpoint {self.path}: found format {found}; wanted {FORMAT}")
        if settings != self.settings:
            raise LoadError(f"checkpoint {self.path}: found a run with {settings}; wanted {self.settings}")
        if not isinstance(state, dict):
            raise LoadError(f"checkpoint {self.path}: found a {type(state).__name__}; wanted the state of a run")
        return state

    def restored(self, restore: Callable[[], T]) -> T:
        """Do something with a state that was read.

        Raises
        ------
        LoadError
            If the state is that of another model or guide, or damaged.
        """
        try:
            return restore()
        except LoadError:
            raise
        except SchemaError as error:
            raise LoadError(f"checkpoint {self.path}: of another model or guide ({error})") from error
        except Exception as error:  # whatever a damaged file leads to
            what = f"{type(error).__name__}: {error}"
            raise LoadError(f"checkpoint {self.path}: cannot be restored, {what}") from error

    def remove(self) -> None:
        """Delete the file of a run that has ended."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
