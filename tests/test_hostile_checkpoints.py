"""Checkpoints made to do harm: nothing in them is executed or followed, all of them are refused."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hostile import DATA, Command, model
from pyro.infer.autoguide import AutoNormal

from embergraph.inference import em, svi
from embergraph.models.parts.errors import LoadError


@pytest.fixture
def checkpoint(tmp_path):
    """A function that makes a checkpoint by a run that is interrupted, and one that goes on from it."""
    options = {"num_steps": 6, "progress": False, "checkpoint": tmp_path / "c", "checkpoint_every": 2}

    def run(routine, stops=False):
        def factor(done):
            if stops and done >= 0.5:
                raise KeyboardInterrupt
            return 1.0

        if routine == "svi":
            return svi(model, AutoNormal, DATA, schedules={"learning_rate": factor}, **options)
        return em(model, Sweeps(3 if stops else None), DATA, tolerance=None, **options)

    return tmp_path / "c", run


class Sweeps(torch.nn.Module):
    """The exact posterior; stops at a sweep."""

    def __init__(self, stops=None):
        super().__init__()
        self.register_buffer("loc", torch.zeros(()))
        self.stops = stops

    def forward(self, y):
        pyro.sample("mean", dist.Normal(self.loc, (len(y) + 0.25) ** -0.5))

    def update(self, model, inputs, step):
        if step == self.stops:
            raise KeyboardInterrupt
        self.loc.copy_(inputs["y"].sum() / (len(inputs["y"]) + 0.25))
        return 0.0


@pytest.mark.parametrize("routine", ["svi", "em"])
def test_hostile_checkpoints(checkpoint, tmp_path, routine):
    path, run = checkpoint
    assert run(routine, stops=True).settings["interrupted"]
    whole, fired = torch.load(path, weights_only=True), tmp_path / "fired"

    def refuses(content):
        torch.save(content, path)
        with pytest.raises(LoadError, match="checkpoint"):
            run(routine)

    for how in ("system", "eval", "path"):
        refuses(Command(fired, how))
        refuses({**whole, "state": {**whole["state"], "more": Command(fired, how)}})
    path.write_bytes(pickle.dumps(Command(fired, "system")))
    with pytest.raises(LoadError, match="not a checkpoint"):
        run(routine)
    assert not fired.exists()
    for value in (
        None,
        7,
        "text",
        [],
        {},
        [[]],
        {"runs": 3},
        {"runs": [None]},
        {"runs": [{}]},
        {"run": {}, "numbers": []},
    ):
        refuses(value)
        if value not in ({}, {"runs": []}):
            refuses({**whole, "state": value})
    os.unlink(path)
    os.symlink("/dev/zero", path)
    with pytest.raises(LoadError, match="wanted a plain file"):
        run(routine)


@pytest.mark.parametrize("routine", ["svi", "em"])
def test_checkpoints_of_other_numbers(checkpoint, routine):
    path, run = checkpoint
    run(routine, stops=True)
    text = path.read_bytes()
    parts = [("runs", 0, "good"), ("runs", 0, "parameters")] if routine == "svi" else [("numbers",)]
    for spoil in (lambda t: torch.full_like(t, np.nan), lambda t: torch.zeros(7), lambda t: t.to(torch.complex64)):
        for where in parts:
            if spoil(torch.zeros(())).isnan().any() and where[-1] == "parameters":
                continue  # a step may have led there; the next one goes back to the good ones
            whole = torch.load(path, weights_only=True)
            place = whole["state"]
            for key in where:
                place = place[key]
            for name in place:
                place[name] = spoil(place[name])
            torch.save(whole, path)
            with pytest.raises(LoadError, match="checkpoint|found NaN|found torch.complex64"):
                run(routine)
            path.write_bytes(text)
    assert run(routine).settings["steps_done"] == 6
