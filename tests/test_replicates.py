"""Replicates: the same result wherever and however often interrupted, and nothing global changes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from calibration_cases import NUMBERS, drawing_fit, normal_mean

import embergraph as eg
from embergraph._replicates import Replicates, given, identity_of, identity_of_data, run, seeds_of
from embergraph.models.parts.errors import DataError, LoadError, NumericalError, SchemaError


def draw(index: int) -> dict[str, np.ndarray]:
    """What depends on all three random states, and how many threads torch has."""
    values = [torch.randn(()).item(), np.random.normal(), random.random()]  # noqa: NPY002
    pyro.param("left_behind", torch.tensor(float(index)))
    return {"values": np.array(values), "threads": np.array(torch.get_num_threads()), "process": np.array(os.getpid())}


def collect(num: int = 5, task: Any = draw, folder: Path | None = None, **options: Any) -> Replicates:
    kept = Replicates(folder, {"what": "test"})
    chosen = {"seed": 3, "n_jobs": 1, "progress": False, "label": "test"} | options
    kept.interrupted = run(task, num, kept, **chosen)  # type: ignore[attr-defined]
    return kept


def values(kept: Replicates) -> np.ndarray:
    return np.array([kept.done[index].result["values"] for index in sorted(kept.done)])


def test_each_depends_on_the_seed_and_its_number_alone() -> None:
    all_at_once = values(collect(5))
    assert len(np.unique(all_at_once)) == 15
    np.testing.assert_array_equal(values(collect(2)), all_at_once[:2])
    assert not np.isin(values(collect(5, seed=4)), all_at_once).any()


def test_the_callers_state_is_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    collect()
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert not dict(pyro.get_param_store())


def test_two_processes_with_one_thread_each_find_the_same() -> None:
    found = collect(4, n_jobs=2)
    np.testing.assert_array_equal(values(found), values(collect(4)))
    outcomes = [outcome.result for outcome in found.done.values()]
    assert {int(result["threads"]) for result in outcomes} == {1}
    assert os.getpid() not in {int(result["process"]) for result in outcomes}


def test_threads_take_turns() -> None:
    running = []

    def slow(index: int) -> dict[str, np.ndarray]:
        running.append(threading.get_ident())
        time.sleep(0.02)
        assert running.pop() == threading.get_ident()
        assert not running
        return draw(index)

    with joblib.parallel_config(backend="threading", n_jobs=3):
        found = collect(6, slow, n_jobs=None)
    np.testing.assert_array_equal(values(found), values(collect(6)))


def test_a_dask_cluster_finds_the_same() -> None:
    distributed = pytest.importorskip("distributed")
    local = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**local) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        found = collect(5, n_jobs=None)
    # Threads of Dask's own draw from Python's generator at any time, but not from torch's and numpy's.
    np.testing.assert_array_equal(values(found)[:, :2], values(collect(5))[:, :2])
    assert os.getpid() not in {int(outcome.result["process"]) for outcome in found.done.values()}


def failing(index: int) -> dict[str, np.ndarray]:
    if index == 1:
        raise NumericalError("step 3: site 'a' is not finite")
    if index == 2:
        raise DataError("gene: found a constant one")
    return draw(index)


def test_failures_are_kept_by_name_also_in_files(tmp_path: Path) -> None:
    for _ in range(2):  # the second time from the files
        found = collect(4, failing, tmp_path).done
        assert found[1].failure == "NumericalError: step 3: site 'a' is not finite"
        assert found[2].failure == "DataError: gene: found a constant one"
        assert sorted(found) == [0, 1, 2, 3]
        assert not found[3].failure


def test_what_no_replicate_can_cure_ends_the_run_but_keeps_the_finished(tmp_path: Path) -> None:
    def broken(index: int) -> dict[str, np.ndarray]:
        if index == 2:
            raise SchemaError("model: another one")
        return draw(index)

    with pytest.raises(SchemaError, match="another one"):
        collect(4, broken, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["replicate_000000.npz", "replicate_000001.npz"]
    np.testing.assert_array_equal(values(collect(4, draw, tmp_path)), values(collect(4)))


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    def stopped(index: int) -> dict[str, np.ndarray]:
        if index == 2:
            raise KeyboardInterrupt
        return draw(index)

    found = collect(4, stopped, tmp_path)
    assert found.interrupted  # type: ignore[attr-defined]
    assert sorted(found.done) == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        collect(4, lambda index: stopped(2))
    np.testing.assert_array_equal(values(collect(4, draw, tmp_path)), values(collect(4)))


def test_another_folder_is_refused(tmp_path: Path) -> None:
    collect(1, draw, tmp_path / "run")
    with pytest.raises(LoadError, match=r"what: found 'test' of another run; wanted 'other'"):
        Replicates(tmp_path / "run", {"what": "other"})
    with pytest.raises(LoadError, match=r"more: found None"):
        Replicates(tmp_path / "run", {"what": "test", "more": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(LoadError, match=r"no identity\.json"):
        Replicates(tmp_path / "mine", {"what": "test"})
    for broken in ("", "[1]", "{"):
        (tmp_path / "run" / "identity.json").write_text(broken)
        with pytest.raises(LoadError, match="not the identity"):
            Replicates(tmp_path / "run", {"what": "test"})


def test_damaged_and_hostile_files_are_refused(tmp_path: Path) -> None:
    collect(2, draw, tmp_path)
    path = tmp_path / "replicate_000001.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LoadError, match="replicate_000001"):
        collect(2, draw, tmp_path)

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    np.savez(path, values=np.array([Hostile()], dtype=object), allow_pickle=True)
    with pytest.raises(LoadError, match="not a finished replicate"):
        collect(2, draw, tmp_path)
    assert not (tmp_path / "executed").exists()
    path.unlink()
    path.with_suffix(".part").write_bytes(b"half")  # of a process that was killed
    np.testing.assert_array_equal(values(collect(2, draw, tmp_path)), values(collect(2)))


def test_identities_know_numbers_and_names_but_no_addresses() -> None:
    linear = torch.nn.Linear(2, 2)
    other = torch.nn.Linear(2, 2)
    assert identity_of(linear) != identity_of(other)
    other.load_state_dict(linear.state_dict())
    assert identity_of(linear) == identity_of(other)
    assert identity_of({"a": (1, np.float64(2.0)), "b": draw, "c": object()}) == {
        "a": [1, 2.0],
        "b": "draw",
        "c": "object",
    }
    data = {"y": ("cell", np.arange(3.0))}
    assert identity_of_data(data) != identity_of_data({"y": ("cell", np.arange(1.0, 4.0))})
    assert identity_of_data(data) == identity_of_data({"y": ("cell", np.arange(3.0))})


def test_seeds_are_given_to_who_asks_for_them() -> None:
    assert given(lambda x: x, 2, seed=5) == 2
    assert given(lambda x, seed: (x, seed), 2, seed=5) == (2, 5)
    assert given(lambda x, *, seed=0: (x, seed), 2, seed=5) == (2, 5)
    assert len({*seeds_of(0, 0, 3), *seeds_of(0, 1, 3), *seeds_of(1, 0, 3)}) == 9


CHOSEN = {"num_replicates": 12, "num_samples": 99, "seed": 2, "n_jobs": 1, "progress": False}
CALIBRATION = f"""
import sys
import embergraph as eg
from calibration_cases import NUMBERS, drawing_fit, normal_mean
eg.calibrate(normal_mean, NUMBERS, fit=drawing_fit, checkpoint=sys.argv[1], **{CHOSEN}).to_netcdf(sys.argv[2])
"""


def test_a_killed_calibration_goes_on_to_the_same_result(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(CALIBRATION)
    folder = tmp_path / "kept"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(tmp_path / "script.py"), str(folder), str(tmp_path / out)]
        return subprocess.Popen(command, env=environment, start_new_session=True)

    killed = start("never.nc")
    deadline = time.monotonic() + 120
    while not (folder / "replicate_000001.npz").exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 2 <= len(list(folder.glob("*.npz"))) < 12
    assert not (tmp_path / "never.nc").exists()
    resumed = start("resumed.nc")
    whole = eg.calibrate(normal_mean, NUMBERS, fit=drawing_fit, **CHOSEN)
    assert resumed.wait(120) == 0
    assert len(list(folder.glob("*.npz"))) == 12
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "resumed.nc"), whole)
