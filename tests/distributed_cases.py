"""What `test_distributed` runs in each process, ``python distributed_cases.py FOLDER CASES...`` with RANK, WORLD_SIZE.

Each case leaves ``CASE.RANK.pt`` in the folder: the state of its fit, or the error that it ended with.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.distributed as comm
from environment_fits import counts
from pyro.infer.autoguide import AutoDelta, AutoNormal

import embergraph as eg
from embergraph.inference import Cosine, svi
from embergraph.models.environment_vae import EnvironmentVAE

N, GENES, LATENT = 64, 5, 2
_RNG = np.random.default_rng(0)
Y = _RNG.normal(size=(N, LATENT)) @ _RNG.normal(size=(LATENT, GENES)) * 1.5 + 0.3 * _RNG.normal(size=(N, GENES))
DATA = {"y": (("cell", "gene"), Y)}
STEPS = 40
POINT = {"num_steps": STEPS, "batch_size": 16, "learning_rate": 0.05, "clip_norm": 200.0, "progress": False}
NOISY = {"num_steps": 300, "batch_size": 32, "learning_rate": 0.02, "progress": False}


class Shared(list):
    """A list that copies share."""

    def __deepcopy__(self, memo):
        return self


class Regression(torch.nn.Module):
    """A mean and a noise a gene: no site of cells, so that AutoDelta has no random numbers."""

    def __init__(self, does=None):
        super().__init__()
        self.steps, self.does = Shared([0]), does

    def forward(self, y):
        with pyro.plate("gene", GENES, dim=-1):
            mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
            noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        if self.does is not None and torch.is_grad_enabled():
            self.steps[0] += 1
            self.does(self.steps[0])
        with pyro.plate("cell", len(y), dim=-1):
            rows = pyro.subsample(y, event_dim=1)
            pyro.sample("y_obs", dist.Normal(mean, noise).to_event(1), obs=rows)


class VAE(torch.nn.Module):
    """A linear decoder with running means of what it sees, a buffer that every step changes."""

    def __init__(self, does=None):
        super().__init__()
        self.decoder = torch.nn.Linear(LATENT, GENES)
        self.normed = torch.nn.BatchNorm1d(GENES, affine=False, momentum=0.1)
        self.steps, self.does = Shared([0]), does

    def forward(self, y):
        with pyro.plate("cell", len(y), dim=-1):
            rows = pyro.subsample(y, event_dim=1)
            z = pyro.sample("z", dist.Normal(rows.new_zeros(LATENT), 1.0).to_event(1))
            if z.requires_grad:
                self.normed(rows)
                self.steps[0] += 1
                if self.does is not None:
                    self.does(self.steps[0])
            pyro.sample("y_obs", dist.Normal(self.decoder(z), 0.3).to_event(1), obs=rows)


class Encoder(torch.nn.Module):
    """Amortised; its update draws random numbers and turns the latents, or breaks down."""

    def __init__(self, breaks_at=None):
        super().__init__()
        self.net = torch.nn.Linear(GENES, 2 * LATENT)
        self.register_buffer("seen", torch.zeros(3))
        self.breaks_at = breaks_at

    def forward(self, y):
        with pyro.plate("cell", len(y), dim=-1):
            loc, scale = self.net(pyro.subsample(y, event_dim=1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(scale) + 1e-3).to_event(1))

    def update(self, model, inputs, step):
        assert int(os.environ.get("RANK", 0)) == 0
        if step == self.breaks_at:
            raise np.linalg.LinAlgError("no factor")
        self.seen = self.seen + torch.rand(3)
        model.decoder.bias.copy_(inputs["y"].mean(0))


def point(does=None, **options):
    """Without random numbers but those that choose rows."""
    return svi(Regression(does), AutoDelta, DATA, **{**POINT, **options})


def noisy(rank=0, **options):
    """Objects that differ by process, as a script without a seed makes them."""
    with torch.random.fork_rng():
        torch.manual_seed(rank)
        return svi(
            VAE(options.pop("does", None)), Encoder(options.pop("breaks_at", None)), DATA, **{**NOISY, **options}
        )


def only(rank, wanted, step, what):
    """Do something in one process at one step."""

    def does(now):
        if rank == wanted and now == step:
            what()

    return does


def raises(error):
    def what():
        raise error

    return what


def _interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _nan_at_row_3(y):
    """Not finite where one row is seen, which one process alone does."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("cell", len(y), dim=-1):
        rows = pyro.subsample(y, event_dim=1)
        scale = torch.where((rows == y[3]).all(-1), float("nan"), 1.0)
        pyro.sample("y_obs", dist.Normal(loc, scale.unsqueeze(-1).expand_as(rows)).to_event(1), obs=rows)


def environment_vae(**options):
    data = counts()
    model = EnvironmentVAE.for_data(data, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eg.fit(model, data, num_steps=60, batch_size=32, progress=False, **options)


def cases(rank, folder):
    """All by name."""
    together = {"distributed": True}
    kept = {"checkpoint_every": 10, **together}
    return {
        "point": lambda: point(**together, schedules={"learning_rate": Cosine()}),
        "restarts": lambda: svi(
            Regression(), AutoNormal, DATA, **{**POINT, "num_steps": 10}, num_restarts=3, **together
        ),
        "noisy": lambda: noisy(rank, **together, update_every=50),
        "from one": lambda: point(checkpoint=folder / "from one.ckpt", **kept),
        "to one": lambda: point(only(rank, 1, 25, _interrupt), checkpoint=folder / "to one.ckpt", **kept),
        "uneven": lambda: point(batch_size=15, **together),
        "too many": lambda: point(batch_size=80, **together),
        "all rows": lambda: point(batch_size=None, **together),
        "other seeds": lambda: point(seed=rank, **together),
        "not finite": lambda: svi(_nan_at_row_3, AutoNormal, DATA, **{**POINT, **together}),
        "breaks down": lambda: noisy(rank, does=only(rank, 1, 3, raises(ZeroDivisionError())), **together),
        "update breaks": lambda: noisy(rank, breaks_at=10, update_every=5, **together),
        "mistake": lambda: noisy(rank, does=only(rank, 1, 3, raises(KeyError("x"))), **together),
        "vae": lambda: environment_vae(**together),
        "killed": lambda: point(only(rank, 0, 25, _kill), checkpoint=folder / "killed.ckpt", **kept),
    }


def outcome(run):
    """What a case came to, as plain numbers."""
    try:
        fit = run()
    except Exception as error:
        ended = getattr(error, "fit", None)
        steps = None if ended is None else ended.settings["steps_done"]
        return {"error": f"{type(error).__name__}: {error}", "steps": steps}
    modules = {"model": fit.model, "guide": fit.guide}
    numbers = {f"{role}.{k}": v for role, module in modules.items() for k, v in module.state_dict().items()}
    return {
        "history": fit.history.values.tolist(),
        "settings": fit.settings,
        "numbers": numbers | {f"store.{k}": v.detach() for k, v in fit.store["params"].items()},
        "training": {key: value for key, value in fit.training.items() if key != "options"},
    }


if __name__ == "__main__":
    folder, rank, size = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    comm.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size,
        timeout=datetime.timedelta(seconds=150),
    )  # fmt: skip
    every = cases(rank, folder)
    for name in sys.argv[2:]:
        before = torch.get_rng_state(), signal.getsignal(signal.SIGINT)
        found = outcome(every[name])
        found["undisturbed"] = torch.equal(before[0], torch.get_rng_state()) and before[1] is signal.getsignal(
            signal.SIGINT
        )
        torch.save(found, folder / f"{name}.{rank}.pt")
    comm.destroy_process_group()
