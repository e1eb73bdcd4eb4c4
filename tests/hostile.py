"""What tests of files made to do harm share: a model, its data, and pickles that run commands."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch

Y = np.random.default_rng(0).normal(1.0, 1.0, 30)
DATA = {"y": ("cell", Y)}


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("cell", len(y)):
        pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)


class Command:
    """Runs a shell command when it is unpickled."""

    def __init__(self, fired, how):
        self.fired, self.how = fired, how

    def __reduce__(self):
        touch = f"touch {self.fired}"
        return {
            "system": (os.system, (touch,)),
            "eval": (eval, (f"__import__('os').system({touch!r})",)),
            "path": (Path.touch, (self.fired,)),
            "load": (torch.hub.load, ("nobody/nothing", "x")),
        }[self.how]
