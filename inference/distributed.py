"""Processes that train together under ``torch.distributed``; one process alone has nothing to agree on.

Everything that a run says to other processes is said here. A collective call hangs unless all processes make it, so the
rule is: what can go wrong in one process alone is done inside `everywhere`, `means_of` or `first`, after which either
all go on or all raise the same error.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, cast

import numpy as np
import torch
import torch.distributed as comm
from torch import Tensor

from ..models.parts.errors import DataError, LoadError, NumericalError, SchemaError
from .updating import BREAKDOWNS

if TYPE_CHECKING:
    from jaxtyping import Int

T = TypeVar("T")
TOLD = {kind.__name__: kind for kind in (DataError, LoadError, NumericalError, SchemaError, KeyboardInterrupt)}


class Processes:
    """One process alone: every method does the plain thing.

    Attributes
    ----------
    rank, size
        Number of this process, from 0, and of how many.
    """

    rank, size = 0, 1
    together = False

    @staticmethod
    def of(distributed: bool, device: torch.device | str | None = None) -> Processes:
        """All processes of the default group, or this one alone.

        Parameters
        ----------
        distributed
            Whether there are others.
        device
            Where the data are, and what is exchanged.

        Raises
        ------
        SchemaError
            If no process group has been made.
        """
        if not distributed:
            return Processes()
        if not comm.is_available() or not comm.is_initialized():
            raise SchemaError(
                "distributed: found no process group; wanted torch.distributed.init_process_group() before, in a "
                "script that torchrun starts"
            )
        return Group(torch.device(device or "cpu"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *what: object) -> None:
        return None

    def share_of(self, batch_size: int | None) -> int | None:
        """How many rows of a step are the part of this process."""
        return batch_size

    def check_rows(self, batch_size: int | None, num_rows: int) -> None:
        """Refuse a batch of more rows than there are."""

    def share(self, rows: Int[Tensor, " batch"]) -> Int[Tensor, " share"]:
        """Those of the rows of a step that are the part of this process."""
        return rows

    def reseed(self, *parts: int) -> None:
        """Let random numbers follow from whole numbers, such as seed and step, and from the rank."""

    def check_same(self, **texts: str) -> None:
        """Refuse to start where processes were given different things."""

    def everywhere(self, work: Callable[[], T]) -> T:
        """Do the same in every process; what goes wrong in one is raised in all."""
        return work()

    def first(self, work: Callable[[], T]) -> T:
        """Do something in process 0; all get its result, or the error. Tensors in it are to be on the CPU."""
        return work()

    def means_of(self, work: Callable[[], Sequence[float]], count: int = 1) -> Sequence[float]:
        """Means over processes of `count` numbers that each works out; what goes wrong in one is raised in all."""
        return work()

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give all processes the mean of their gradients."""

    def average_values(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the mean of numbers of theirs; whole numbers are those of process 0."""

    def some_word(self, word: str) -> str:
        """The first text that is not empty."""
        return word


class Group(Processes):
    """All processes of the default group of ``torch.distributed``.

    Inside ``with``, Ctrl-C in any of them waits for the next exchange and then interrupts all of them at the same
    point; a second one stops the process at once.
    """

    together = True

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.device = comm.get_rank(), comm.get_world_size(), device
        self._interrupted, self._handler = False, cast("Any", None)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *what: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def share_of(self, batch_size: int | None) -> int | None:
        """Rows of a step that are this process's.

        Raises
        ------
        DataError
            If processes cannot share them out evenly.
        """
        if batch_size is None or batch_size % self.size:
            raise DataError(
                f"batch_size: found {batch_size} for {self.size} processes; wanted a multiple of {self.size}, of which "
                "each process takes its share"
            )
        return batch_size // self.size

    def check_rows(self, batch_size: int | None, num_rows: int) -> None:
        """Refuse a batch of more rows than there are.

        Raises
        ------
        DataError
            If there are several processes and too few rows.
        """
        if self.size > 1 and (batch_size is None or num_rows < batch_size):
            found = f"{batch_size} of {num_rows} rows" if num_rows else f"{batch_size}, more than there are rows"
            raise DataError(f"batch_size: found {found}; wanted at most all rows, which processes share out")

    def share(self, rows: Int[Tensor, " batch"]) -> Int[Tensor, " share"]:
        """Those of the rows of a step that are the part of this process."""
        return rows.tensor_split(self.size)[self.rank]

    def reseed(self, *parts: int) -> None:
        """Let random numbers follow from whole numbers, such as seed and step, and from the rank."""
        torch.manual_seed(int(np.random.SeedSequence([*parts, self.rank, 1]).generate_state(1)[0]))

    def check_same(self, **texts: str) -> None:
        """Refuse to start where processes were given different things.

        Raises
        ------
        DataError
            Naming the thing.
        """
        everyone = self._gathered(texts)
        for name, text in everyone[0].items():
            for rank, found in enumerate(everyone):
                if found[name] != text:
                    raise DataError(f"{name}: found {found[name]} in process {rank}; wanted {text}, as in process 0")

    def everywhere(self, work: Callable[[], T]) -> T:
        """Do the same in every process; what goes wrong in one is raised in all."""
        result, error = _tried(work)
        self._settle(error, [])
        return result

    def first(self, work: Callable[[], T]) -> T:
        """Do something in process 0; all get its result, or the error. Tensors in it are to be on the CPU."""
        result, error = _tried(work) if self.rank == 0 else (None, None)
        message = [(_told(error), result)]
        comm.broadcast_object_list(message, src=0)
        told, result = message[0]
        if told is not None:
            raise error or _error_of(0, *told)
        return cast("T", result)

    def means_of(self, work: Callable[[], Sequence[float]], count: int = 1) -> Sequence[float]:
        """Means over processes of `count` numbers that each works out; what goes wrong in one is raised in all."""
        numbers, error = _tried(work)
        return self._settle(error, [0.0] * count if error is not None else numbers)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give all processes the mean of their gradients; none where no process has one."""
        for alike in _by_dtype(parameters):
            given = alike[0].new_tensor([p.grad is not None for p in alike])
            own = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
            *means, given = self._means([*own, given])
            for parameter, mean, has in zip(alike, means, given.tolist(), strict=True):
                parameter.grad = mean if has else None

    @torch.no_grad()
    def average_values(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the mean of numbers of theirs; whole numbers are those of process 0."""
        for alike in _by_dtype(tensors):
            if alike[0].is_floating_point():
                for tensor, mean in zip(alike, self._means(alike), strict=True):
                    tensor.copy_(mean)
                continue
            for tensor in alike:
                comm.broadcast(tensor, src=0)

    def some_word(self, word: str) -> str:
        """The first text of a process that is not empty."""
        return next(filter(None, self._gathered(word)), "")

    def _settle(self, error: BaseException | None, numbers: Sequence[float]) -> list[float]:
        """Tell all processes whether all is well; the means of their numbers."""
        if error is None and self._interrupted:
            error, self._interrupted = KeyboardInterrupt(), False
        told = torch.tensor([float(error is not None), *numbers], dtype=torch.double, device=self.device)
        comm.all_reduce(told)
        failures, *sums = told.tolist()
        if failures:
            self._raise_same(error)
        return [total / self.size for total in sums]

    def _raise_same(self, error: BaseException | None) -> NoReturn:
        """Raise the error of the first process that has one."""
        everyone = self._gathered(_told(error))
        rank, told = next((rank, told) for rank, told in enumerate(everyone) if told is not None)
        if rank == self.rank and error is not None:
            raise error
        raise _error_of(rank, *told) from error

    def _gathered(self, thing: Any) -> list[Any]:
        """What each process says."""
        everyone: list[Any] = [None] * self.size
        comm.all_gather_object(everyone, thing)
        return everyone

    def _means(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        comm.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _tried(work: Callable[[], T]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:  # Ctrl-C too: the others wait
        return None, error


def _told(error: BaseException | None) -> tuple[str, str] | None:
    """An error as others are told of it."""
    if error is None:
        return None
    kind = next((k for k in type(error).__mro__ if k.__name__ in TOLD), type(error))
    kind = NumericalError if isinstance(error, BREAKDOWNS) else kind
    return kind.__name__, str(error) or type(error).__name__


def _error_of(rank: int, kind: str, text: str) -> BaseException:
    """The error of another process."""
    return TOLD[kind](text) if kind in TOLD else RuntimeError(f"process {rank}: {kind}: {text}")


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())
