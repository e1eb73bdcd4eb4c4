"""Runs that are really killed, by signal 9 at any time and in the midst of writing, end as if nobody had."""

from __future__ import annotations

import os
import subprocess
import sys

import killed_cases as cases
import pytest
import torch

TIME_LIMIT = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With what the runs came to that were killed, and those that were not."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, cases.__file__, str(folder), *cases.CASES]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("case", cases.CASES)
def test_a_killed_run_ends_where_an_uninterrupted_one_does(folder, case):
    ends = torch.load(folder / f"{case}.ends.pt", weights_only=True)
    assert ends["ends"] == [-9, -9], "it ended before it was killed"
    assert ends["parts"][1], "half of a file was left"
    assert ends["left"] == []
    killed, whole = (torch.load(folder / f"{case}.{name}.pt", weights_only=True) for name in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    for name, value in whole.items():
        assert (
            torch.equal(killed[name], value) or (value.isnan() & killed[name].isnan() | (value == killed[name])).all()
        )
