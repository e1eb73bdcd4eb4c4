"""Fits that are killed: ``python killed_cases.py FOLDER CASE...``, each run in processes of its own.

For every case a process is killed with signal 9 at some time and another one as it writes; the same command then ends.
The fit is written to ``CASE.killed.pt``, that of a process that nobody killed to ``CASE.whole.pt``.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch._dynamo  # optimisers need it: once here, not in every process
from environment_fits import counts
from med_magma_fits import data_of
from pyro.infer.autoguide import AutoNormal

import embergraph as eg
from embergraph.inference import Cosine, em, svi
from embergraph.models import MEDMAGMA, NOTMAD, EnvironmentVAE

Y = np.random.default_rng(0).normal([1.0, 2.0, 3.0, 4.0], 1.0, size=(30, 4))
DATA = {"y": (("cell", "gene"), Y)}
PAUSE = 0.004  # of a step, so that there is time to be killed


def model(y):
    time.sleep(PAUSE)
    noise = pyro.sample("noise", dist.Gamma(2.0, 2.0))
    with pyro.plate("gene", 4, dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("cell", len(y), dim=-1):
        pyro.sample("y_obs", dist.Normal(mean, noise).to_event(1), obs=pyro.subsample(y, event_dim=1))


class Guide(torch.nn.Module):
    """Sweeps that slowly come near the means, with some noise."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("noise", torch.ones(()))

    def forward(self, y):
        pyro.sample("noise", dist.Delta(self.noise))
        with pyro.plate("gene", 4, dim=-1):
            pyro.sample("mean", dist.Normal(self.mean, 0.1))

    def update(self, model, inputs, step):
        time.sleep(PAUSE)
        self.mean.add_(0.1 * (inputs["y"].mean(0) - self.mean) + 0.01 * torch.randn(4))
        return -float((inputs["y"] - self.mean).square().sum())


def _vae(checkpoint):
    data = counts()
    options = {"num_steps": 24, "batch_size": 40, "num_restarts": 2, "checkpoint_every": 4, "progress": False}
    return eg.fit(EnvironmentVAE.for_data(data, 3), data, checkpoint=checkpoint, **options)


def _med_magma(checkpoint):
    data = data_of()
    return eg.fit(MEDMAGMA.for_data(data), data, num_steps=35, tolerance=0.0, checkpoint=checkpoint, progress=False)


def _notmad(checkpoint):
    raw = eg.datasets.simulated_notmad(0, num_cells=40, num_genes=3, num_covariates=1)
    data = eg.standardize(raw, scale="common")[0]
    options = {"num_restarts": 1, "num_steps": 8, "num_orders": 2, "num_guide_steps": 100, "progress": False}
    built = NOTMAD.for_data(data, 2, encoder="linear")
    return eg.fit(built, data, posterior="mean_field", checkpoint=checkpoint, **options)


SVI = {
    "num_steps": 40, "num_restarts": 2, "batch_size": 10, "checkpoint_every": 3, "progress": False,
    "schedules": {"learning_rate": Cosine()},
}  # fmt: skip
EM = {"num_steps": 60, "tolerance": None, "checkpoint_every": 3, "progress": False}
CASES = {
    "svi": lambda checkpoint: svi(model, AutoNormal, DATA, checkpoint=checkpoint, **SVI),
    "em": lambda checkpoint: em(model, Guide(), DATA, checkpoint=checkpoint, **EM),
    "vae": _vae,
    "med_magma": _med_magma,
    "notmad": _notmad,
}
BESIDE = {"notmad": ".svi"}  # whose steps are in a file beside


def numbers(fit):
    """What two runs that are the same agree on to the bit."""
    modules = {"model": fit.model, "guide": fit.guide}
    found = {f"{r}.{k}": v for r, m in modules.items() if hasattr(m, "state_dict") for k, v in m.state_dict().items()}
    stored = {f"store.{k}": v.detach() for k, v in (fit.store or {}).get("params", {}).items()}
    return found | stored | {"history": torch.as_tensor(fit.history.values), "rng": fit.training["rng"][0]}


def run(case, path, checkpoint, in_writing):
    """In a process of its own: fit and write."""
    if in_writing:
        _die_in_writing(in_writing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = CASES[case](checkpoint)
    torch.save(numbers(fit), path)


def _die_in_writing(which):
    """Be killed when half of a checkpoint is on disk."""
    whole, left = torch.save, [which]

    def half(thing, path):
        left[0] -= 1
        if left[0]:
            return whole(thing, path)
        buffer = io.BytesIO()
        whole(thing, buffer)
        Path(path).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        return os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


def fork(*arguments):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run(*arguments)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def killed(case, folder, when):
    """Kill it some time after it has written a checkpoint, and when it goes on and writes its second."""
    path, checkpoint = folder / f"{case}.killed.pt", folder / f"{case}.ckpt"
    written = folder / f"{case}.ckpt{BESIDE.get(case, '')}"
    ends, parts = [], []
    for in_writing in (0, 2):
        child = fork(case, path, checkpoint, in_writing)
        limit = time.monotonic() + 60
        while not in_writing and time.monotonic() < limit and os.waitpid(child, os.WNOHANG) == (0, 0):
            if written.exists():
                time.sleep(when.uniform(0, 0.05))
                os.kill(child, signal.SIGKILL)
                break
            time.sleep(0.001)
        try:
            ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        except ChildProcessError:  # it has ended before it could be killed
            ends.append(0)
        parts.append(written.with_name(written.name + ".part").exists())
    assert os.waitpid(fork(case, path, checkpoint, 0), 0)[1] == 0
    return {"ends": ends, "parts": parts, "left": [p.name for p in folder.glob(f"{case}.ckpt*")]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, when = Path(sys.argv[1]), random.Random(0)
    for case in sys.argv[2:]:
        ends = killed(case, folder, when)
        whole = fork(case, folder / f"{case}.whole.pt", None, 0)
        assert os.waitpid(whole, 0)[1] == 0
        torch.save(ends, folder / f"{case}.ends.pt")
