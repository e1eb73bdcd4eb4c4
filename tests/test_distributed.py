"""SVI by two processes: the same as by one, whatever happens to one of the two."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import distributed_cases as cases
import numpy as np
import pytest
import torch

from embergraph.inference import Cosine
from embergraph.inference.distributed import Processes
from embergraph.models.parts.errors import SchemaError

TIME_LIMIT = 300
FAIL = {
    "uneven": "DataError: batch_size: found 15 for 2 processes; wanted a multiple of 2",
    "all rows": "DataError: batch_size: found None for 2 processes",
    "too many": "DataError: batch_size: found 80 of 64 rows; wanted at most all rows",
    "other seeds": "DataError: settings: found .* in process 1; wanted .* as in process 0",
    "not finite": "NumericalError: step 2: the loss is nan, at site 'y_obs' of the model; parameters are those of ",
    "breaks down": "NumericalError: step 3: ZeroDivisionError; parameters are those of step 2",
    "update breaks": "NumericalError: step 10: the update: no factor; parameters are those of step 10",
}


def start(folder, *names, size=2):
    """Processes that run cases; each writes to its own log."""
    (folder / "store").unlink(missing_ok=True)
    running = []
    for rank in range(size):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        log = (folder / f"{rank}.log").open("w")
        command = [sys.executable, Path(cases.__file__), folder, *names]
        running.append(subprocess.Popen(list(map(str, command)), env=env, stdout=log, stderr=log))
        log.close()
    return running


def finish(folder, running):
    """Their exit codes; none outlives the test."""
    try:
        return [process.wait(TIME_LIMIT) for process in running]
    except subprocess.TimeoutExpired:
        logs = "\n".join((folder / f"{rank}.log").read_text() for rank in range(len(running)))
        pytest.fail(f"processes hang: {logs}")
    finally:
        for process in running:
            process.kill()
            process.wait()


def read(folder, name):
    return [torch.load(folder / f"{name}.{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With what two processes made of all cases; in the last of them one is killed."""
    folder = tmp_path_factory.mktemp("two")
    options = {"checkpoint": folder / "from one.ckpt", "checkpoint_every": 10}
    cut = cases.point(cases.only(0, 0, 25, cases.raises(KeyboardInterrupt())), **options)
    assert cut.settings["interrupted"]
    assert options["checkpoint"].exists()
    codes = finish(folder, start(folder, *cases.cases(0, folder)))
    assert codes == [-signal.SIGKILL, 0], "\n".join((folder / f"{rank}.log").read_text() for rank in (0, 1))
    return folder


@pytest.fixture(scope="module")
def alone():
    """By one process."""
    return cases.outcome(cases.point)


def assert_same(a, b, where="fit"):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_close(found, wanted):
    """But for the order of sums."""
    np.testing.assert_allclose(found["history"], wanted["history"], rtol=1e-12)
    for name, value in wanted["numbers"].items():
        torch.testing.assert_close(found["numbers"][name], value, rtol=1e-10, atol=1e-12)
    assert found["settings"]["final_loss"] == pytest.approx(wanted["settings"]["final_loss"], rel=1e-12)


@pytest.mark.parametrize("name", ["point", "restarts", "noisy", "from one", "to one", "vae"])
def test_both_processes_return_the_same_fit_to_the_bit_and_disturb_nothing(folder, name):
    first, second = read(folder, name)
    assert first["undisturbed"]
    assert "numbers" in first, first
    assert_same(first, second)


def test_without_noise_two_processes_are_one_with_the_doubled_batch(folder):
    wanted = cases.outcome(lambda: cases.point(schedules={"learning_rate": Cosine()}))
    assert_close(read(folder, "point")[0], wanted)
    assert abs(wanted["history"][0][-1] / cases.outcome(lambda: cases.point(batch_size=8))["history"][0][-1] - 1) > 1e-3


def test_with_noise_the_smoothed_curve_is_that_of_one_process(folder):
    """Objects of process 0 count, which were made with its random numbers; half the batch is another curve."""

    def smooth(history):
        return np.log(np.array(history)[0, 100:].reshape(-1, 25).mean(1))

    found = smooth(read(folder, "noisy")[0]["history"])
    several = np.stack([smooth(cases.noisy(seed=s, update_every=50).history.values) for s in range(4)])
    error = np.maximum(several.std(0, ddof=1), 0.005) * np.sqrt(1 + 1 / len(several))
    assert (np.abs(found - several.mean(0)) < 4 * error).all()
    half = smooth(cases.noisy(update_every=50, batch_size=16).history.values)
    assert (np.abs(half - several.mean(0)) > 4 * error).any()


def test_buffers_that_steps_change_are_shared(folder):
    """Running means are of the rows that both have seen: far more alike to all rows than the draws of one."""
    numbers = read(folder, "noisy")[0]["numbers"]
    assert numbers["model.normed.num_batches_tracked"] == 300
    plain = cases.noisy(update_every=50).model.normed
    torch.testing.assert_close(numbers["model.normed.running_mean"], plain.running_mean, rtol=0, atol=1e-12)
    assert 0 < numbers["guide.seen"].max() < 6  # six updates, of process 0 alone
    assert (numbers["guide.seen"] > 1).all()


@pytest.mark.parametrize("name", FAIL)
def test_what_goes_wrong_in_one_is_said_by_both(folder, name):
    first, second = read(folder, name)
    assert re.match(FAIL[name], first["error"]), first["error"]
    assert first == second


def test_a_mistake_in_one_stops_both(folder):
    first, second = read(folder, "mistake")
    assert first["error"] == "RuntimeError: process 1: KeyError: 'x'"
    assert second["error"] == "KeyError: 'x'"


def test_a_checkpoint_of_one_process_goes_on_with_two(folder, alone):
    assert_close(read(folder, "from one")[0], alone)
    assert not (folder / "from one.ckpt").exists()


def test_ctrl_c_in_one_interrupts_both_and_one_process_goes_on_alone(folder, alone):
    cut = read(folder, "to one")[0]["settings"]
    assert cut["interrupted"]
    assert cut["steps_done"] == 24
    assert (folder / "to one.ckpt").exists()
    steps = []
    again = cases.outcome(lambda: cases.point(steps.append, checkpoint=folder / "to one.ckpt", checkpoint_every=10))
    assert len(steps) == cases.STEPS - 20
    assert_close(again, alone)
    assert not (folder / "to one.ckpt").exists()


def test_a_killed_process_leaves_a_checkpoint_that_goes_on(folder, alone):
    left = torch.load(folder / "killed.1.pt", weights_only=False)
    assert left["error"].startswith("RuntimeError: "), left  # of the connection
    found = cases.outcome(lambda: cases.point(checkpoint=folder / "killed.ckpt", checkpoint_every=10))
    assert_close(found, alone)


def test_a_group_is_needed():
    with pytest.raises(SchemaError, match="distributed: found no process group; wanted torch.distributed.init_process"):
        cases.point(distributed=True)
    assert Processes.of(False).size == 1
