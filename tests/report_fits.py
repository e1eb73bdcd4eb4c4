"""A user's own small model, and fits of it and of every method, that the tests of the report look at."""

from __future__ import annotations

import functools
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import xarray as xr
from environment_fits import counts, two_latents
from med_magma_fits import FAMILIES, data_of, fitted
from notmad_use_cases import QUICK
from notmad_use_cases import data as network_data
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal

import embergraph as eg
from embergraph._report import Report
from embergraph.models import NOTMAD, EnvironmentVAE

GENES = ["<b>A</b>", 'B"q"', "C&D", "nano", "$E$"]
SHORT = {"num_restarts": 1, "num_steps": 60, "num_orders": 2, "num_warmup": 10, "num_draws": 30}
DIMS = {"level": ("side",)}


def own_data(num_cells: int = 40, seed: int = 0) -> xr.Dataset:
    """Cells of two kinds; names that HTML and matplotlib could take for something else."""
    rng = np.random.default_rng(seed)
    kind = rng.random(num_cells) < 0.4
    y = rng.normal(size=5) + np.where(kind, 2.0, -1.0)[:, None] + 0.5 * rng.normal(size=(num_cells, 5))
    names = {"cell": [f"c{i}" for i in range(num_cells)], "gene": GENES}
    return xr.Dataset({"y": (("cell", "gene"), y), "half": ("cell", np.where(kind, np.nan, 1.0))}, names)


def own_model(y: Any) -> None:
    """Two plates, one enumerated discrete site, one deterministic one."""
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    level = pyro.sample("level", dist.Normal(0.0, spread).expand([2]).to_event(1))
    gap = pyro.deterministic("gap", level[..., 1] - level[..., 0])
    genes = pyro.plate("gene", y.shape[-1], dim=-1)
    with genes:
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    with pyro.plate("cell", y.shape[-2], dim=-2):
        kind = pyro.sample("kind", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
        with genes:
            pyro.sample("y_obs", dist.Normal(level[..., 0] + gap * kind + offset, 0.5), obs=y)


def own_guide(model: Any) -> Any:
    """Mean field of all that is not summed out."""
    return AutoNormal(poutine.block(model, hide=["kind"]))


def own_points(model: Any) -> Any:
    """Point estimates."""
    return AutoDelta(poutine.block(model, hide=["kind"]))


@functools.cache
def case(name: str) -> tuple[eg.Fit, xr.Dataset, xr.Dataset | None]:
    """A fit, its data, and held-out data where the test has some."""
    if name in ("own svi", "own points"):
        guide = own_guide if name == "own svi" else own_points
        run = {"num_steps": 60, "learning_rate": 0.05, "dims": DIMS, "progress": False}
        return eg.svi(own_model, guide, own_data(), **run), own_data(), own_data(20, 1).drop_vars("half")
    if name == "own mcmc":
        data = own_data(12)
        return eg.mcmc(own_model, data, num_warmup=10, num_draws=26, dims=DIMS, progress=False), data, None
    if name in ("notmad mean field", "notmad hmc"):
        train, test = eg.split(network_data(80), every=4)
        posterior = name.removeprefix("notmad ").replace(" ", "_")
        return eg.fit(NOTMAD.for_data(train, 2), train, posterior=posterior, **QUICK | SHORT), train, test
    if name == "notmad relaxed":
        data = network_data(80)
        return eg.fit(NOTMAD.for_data(data, 2, order=None), data, **QUICK | SHORT), data, None
    if name.startswith("med-magma"):
        data = data_of(m=2 if "spectral" in name else None)
        return fitted(data, **FAMILIES["spectral" if "spectral" in name else "edges"]), data, None
    if name == "vae em":
        hostile = [f"$a_{{{i}^<script>alert('{i}')</script>{'x' * (4 * i)}" for i in range(10)]
        data = two_latents(num_cells=60).assign_coords(gene=hostile)
        return eg.fit(EnvironmentVAE.for_data(data, 2), data, progress=False), data, None
    data = counts()
    model = EnvironmentVAE.for_data(data, 3, gene_effects=True)
    return eg.fit(model, data, num_steps=30, progress=False), data, data.isel(cell=slice(0, 30))


CASES = [
    "own svi", "own points", "own mcmc", "notmad mean field", "notmad hmc", "notmad relaxed", "med-magma",
    "med-magma spectral", "vae em", "vae svi",
]  # fmt: skip


@functools.cache
def made(name: str) -> Report:
    fit, data, test = case(name)
    return eg.report(fit, data, test, num_samples=30, progress=False)


VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags, texts, attributes that load something; refuses what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.styles if self.open and self.open[-1] == "style" else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def named(self, tag: str) -> list[dict[str, Any]]:
        return [attrs for name, attrs in self.tags if name == tag]


def words(text: str) -> set[str]:
    return set(re.findall(r"[\w.]+", text))
