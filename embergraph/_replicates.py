"""Replicates of an analysis: each with its own seed, in parallel through joblib, kept as soon as it is finished."""

from __future__ import annotations

import inspect
import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from .inference.copies import owner_of
from .inference.export import name_of
from .inference.fingerprints import fingerprint
from .inference.inputs import DataLike, as_dataset
from .inference.messengers import isolated
from .models.parts.errors import DataError, LoadError, NotSparseError, NumericalError, SchemaError

FORMAT = 1
_TURN = threading.RLock()  # Pyro has one stack of handlers a process: threads of one process take turns


FAILURES = (NumericalError, NotSparseError, DataError, ArithmeticError, RuntimeError, ValueError)
"""What a replicate may fail of without ending all others; a mistake in a program, such as a TypeError, ends them."""


@dataclass(frozen=True)
class Outcome:
    """What became of a replicate: its result, or in words why there is none."""

    index: int
    result: Any
    failure: str = ""


class Replicates:
    """The finished replicates of one run, in a folder if there is one.

    Parameters
    ----------
    folder
        One small file a replicate (numpy arrays, never pickle) and ``identity.json``; None keeps them in memory only.
    identity
        What must be the same for the replicates in a folder to be taken over; JSON.

    Raises
    ------
    LoadError
        If the folder is of another run, or holds other or damaged files.
    """

    def __init__(self, folder: str | Path | None, identity: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.done: dict[int, Outcome] = {}
        if self.folder is not None:
            about = {"format": FORMAT, "embergraph": version("embergraph"), **identity}
            self._claim(self.folder, json.loads(json.dumps(about)))
            self.done = {outcome.index: outcome for outcome in map(_read, sorted(self.folder.glob("replicate_*.npz")))}

    def add(self, outcome: Outcome) -> None:
        """Keep a finished replicate; its file is written whole or not at all."""
        self.done[outcome.index] = outcome
        if self.folder is None:
            return
        arrays = {"failure": np.array(outcome.failure)} if outcome.failure else outcome.result
        path = self.folder / f"replicate_{outcome.index:06d}.npz"
        beside = path.with_suffix(".part")
        with beside.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(beside, path)

    def _claim(self, folder: Path, about: dict[str, Any]) -> None:
        path = folder / "identity.json"
        if not path.exists():
            if folder.exists() and any(file.suffix != ".part" for file in folder.iterdir()):
                raise LoadError(f"checkpoint {folder}: found files, but no identity.json; wanted a folder of its own")
            folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(about, indent=1))
            os.replace(beside, path)
        try:
            found = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise LoadError(f"{path}: not the identity of a run of embergraph ({error})") from error
        for key in sorted(found.keys() | about.keys()):
            if found.get(key) != about.get(key):
                raise LoadError(
                    f"checkpoint {folder}: {key}: found {found.get(key)!r} of another run; wanted {about.get(key)!r}"
                )


def run(
    task: Callable[[int], Any],
    num: int,
    kept: Replicates,
    *,
    seed: int,
    n_jobs: int | None,
    progress: bool,
    label: str,
) -> bool:
    """Run the replicates 0, ..., num - 1 that are not finished yet.

    Each runs with a parameter store of its own and with a random state (torch, numpy, Python) that depends on `seed`
    and its number alone, so that neither the order nor the place matters (on a cluster, Python's own generator is
    shared with what else runs in the process). Errors that come from a replicate's data are kept as failures, all
    others end the run. In another process torch uses one thread.

    Parameters
    ----------
    task
        Maps the number of a replicate to its result: a dict of numpy arrays if there is a folder.
    num
        Number of replicates in all.
    kept
        Where results are put.
    seed
        Of all replicates.
    n_jobs
        As in `joblib.Parallel`; None leaves it to ``joblib.parallel_config``, and is 1 without one.
    progress, label
        Whether to show a bar, and its name.

    Returns
    -------
    bool
        Whether it was interrupted by Ctrl-C with something finished.

    Raises
    ------
    KeyboardInterrupt
        If it was interrupted before anything was finished.
    """
    if n_jobs is not None and (isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs == 0):
        raise DataError(f"n_jobs: found {n_jobs!r}; wanted a number of processes, -1 for all cores, or None")
    missing = [index for index in range(num) if index not in kept.done]
    calls = (delayed(_one)(task, index, seed, os.getpid()) for index in missing)
    try:
        with tqdm(total=num, initial=num - len(missing), desc=label, disable=not progress) as bar:
            for outcome in _results(calls, n_jobs):
                kept.add(outcome)
                bar.update()
    except KeyboardInterrupt:
        if not kept.done:
            raise
        return True
    return False


def seeds_of(seed: int, index: int, num: int) -> list[int]:
    """Independent seeds of the parts of one replicate."""
    return [int(word) for word in np.random.SeedSequence([seed, index]).generate_state(num)]


def given(function: Callable[..., Any], *arguments: Any, seed: int) -> Any:
    """Call a user's function, with the seed if it has a parameter of that name."""
    return function(*arguments, seed=seed) if wants_seed(function) else function(*arguments)


def wants_seed(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter named ``seed``.

    Raises
    ------
    SchemaError
        If it is no function.
    """
    if not callable(function):
        raise SchemaError(f"found {type(function).__name__} {function!r}; wanted a function")
    try:
        return "seed" in inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return False


def identity_of(value: Any) -> Any:
    """JSON by which a value is recognised in another process: functions and objects by name, modules by state."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): identity_of(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        items = [identity_of(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    module = owner_of(value)
    return name_of(value) if module is None else f"{name_of(value)} {fingerprint(module.state_dict())}"


def identity_of_data(data: DataLike | None) -> str:
    """A short text that differs when the variables of a Dataset differ."""
    if data is None:
        return ""
    dataset = as_dataset(data)
    return fingerprint({name: dataset[name].values for name in sorted(map(str, dataset.variables))})


def _results(calls: Any, n_jobs: int | None) -> Iterator[Outcome]:
    parallel = Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator_unordered")
    results = parallel(calls)
    try:
        yield from results
    finally:
        results.close()


def _one(task: Callable[[int], Any], index: int, seed: int, home: int) -> Outcome:
    with ExitStack() as stack:
        stack.enter_context(_TURN)
        stack.enter_context(_own_state(*seeds_of(seed, index, 1)))
        if os.getpid() != home:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        try:
            return Outcome(index, task(index))
        except SchemaError:  # data and model do not belong together in any replicate
            raise
        except FAILURES as error:
            return Outcome(index, None, f"{type(error).__name__}: {error}")


@contextmanager
def _own_state(seed: int) -> Iterator[None]:
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002, a user's function may draw from it
    try:
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        with isolated(seed):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _read(path: Path) -> Outcome:
    try:
        index = int(path.stem.removeprefix("replicate_"))
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except Exception as error:  # whatever a damaged or foreign file leads to
        raise LoadError(f"{path}: not a finished replicate ({type(error).__name__}: {error})") from error
    if "failure" in arrays:
        return Outcome(index, None, str(arrays["failure"]))
    return Outcome(index, arrays)
