"""CPU time of a step of `svi` on an Environment VAE against a loop written by hand, side by side.

Both train the same network on the same loss: encoder and decoder of 128-128 units, 20 latents, the KL to the prior of
the environments in closed form, batches of 128. The loop by hand has nothing else: no checks for finite numbers, no
state to go back to. Its negative binomial is the formula in `torch.lgamma`, and, in a row of its own, the library's
function. The two take turns in blocks of steps, after one block each to warm up; times are of the process, and the
ratio is the median over blocks, with quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from _tables import Row, Tables
from torch import Tensor, nn
from torch.nn.functional import softplus

from embergraph.guides.environment_vae import EnvironmentVAEGuide
from embergraph.guides.parts.cell_encoders import CellEncoder
from embergraph.inference.inputs import to_inputs
from embergraph.inference.options import Options
from embergraph.inference.run import Run
from embergraph.models.environment_vae import EnvironmentVAE
from embergraph.models.parts.count_distributions import negative_binomial_score

BATCH, RATE, NUM_LATENTS, NUM_ENVIRONMENTS = 128, 1e-3, 20, 20
LAWS = {
    "Normal": "gaussian",
    "Poisson": "poisson",
    "NB": "negative_binomial",
    "NB, score of the library": "negative_binomial",
}


def simulated(likelihood: str, num_cells: int, num_genes: int) -> xr.Dataset:
    """Cells of equally many environments; what they are does not matter here."""
    random = np.random.default_rng(0)
    counts = likelihood != "gaussian"
    draw = random.gamma(2.0, 1.0, (num_cells, num_genes)) if counts else random.normal(size=(num_cells, num_genes))
    values = (random.poisson(draw) if counts else draw).astype(np.float32)
    return xr.Dataset(
        {
            "expression": (("cell", "gene"), values),
            "environment": ("cell", random.permutation(num_cells) % NUM_ENVIRONMENTS),
            "library": ("cell", values.sum(1) if counts else np.ones(num_cells, np.float32)),
        },
        {"condition": [f"e{k}" for k in range(NUM_ENVIRONMENTS)]},
    )


def library_steps(likelihood: str, data: xr.Dataset) -> tuple[Callable[[int], None], CellEncoder]:
    """Steps of `svi` without its start and end, and the encoder that it has copied."""
    torch.manual_seed(0)
    model = EnvironmentVAE.for_data(data, NUM_LATENTS, decoder="mlp", likelihood=likelihood)
    inputs = to_inputs(model.schema, data)
    encoder = CellEncoder(
        model.num_genes, NUM_LATENTS, transform="log1p" if model.likelihood.counts else "identity"
    ).fit_transform_(inputs["expression"])
    guide = EnvironmentVAEGuide.for_model(model, encoder)
    run = Run(model, guide, model.schema, inputs, Options(learning_rate=RATE, batch_size=BATCH), 0)
    return lambda num_steps: run.advance(num_steps, 10**6, lambda: None), encoder


class ByHand:
    """The loop that one writes oneself."""

    def __init__(self, law: str, data: xr.Dataset, encoder: CellEncoder, **adam: bool) -> None:
        self.law = law
        self.x, self.library = (torch.tensor(data[name].values) for name in ("expression", "library"))
        self.environment = torch.tensor(data["environment"].values)
        self.center, self.scale = encoder.center, encoder.scale
        num_genes = self.x.shape[1]
        self.encoder = layers(num_genes, 2 * NUM_LATENTS)
        self.decoder = layers(NUM_LATENTS, num_genes)
        self.raw = nn.Parameter(torch.zeros(()) if law == "Normal" else torch.zeros(num_genes))
        self.mean, self.variance = torch.zeros(2, NUM_ENVIRONMENTS, NUM_LATENTS)
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        parameters += [] if law == "Poisson" else [self.raw]
        self.optimizer = torch.optim.Adam(parameters, lr=RATE, **adam)
        self.losses: list[float] = []
        self.order = torch.empty(0, dtype=torch.long)

    def steps(self, num_steps: int) -> None:
        """Train."""
        for _ in range(num_steps):
            if len(self.order) < BATCH:
                self.order = torch.randperm(len(self.x))
            rows, self.order = self.order[:BATCH], self.order[BATCH:]
            self.optimizer.zero_grad()
            loss = self.loss(self.x[rows], self.library[rows], self.environment[rows])
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    def loss(self, x: Tensor, library: Tensor, environment: Tensor) -> Tensor:
        """Negative ELBO of a batch, scaled to all cells."""
        seen = x if self.law == "Normal" else x.log1p()
        loc, log_variance = self.encoder((seen - self.center) / self.scale).chunk(2, -1)
        log_variance = log_variance.clamp(-8, 4)
        z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
        squares = log_variance.exp() + (loc - self.mean[environment]).square() + self.variance[environment]
        divergence = 0.5 * (squares - log_variance - 1).sum()
        return len(self.x) / len(x) * (divergence - self.score(self.decoder(z), library, x))

    def score(self, output: Tensor, library: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood without what the data alone decide."""
        if self.law == "Normal":
            scale = softplus(self.raw) + 1e-3
            return -0.5 * ((x - output) / scale).square().sum() - x.numel() * scale.log()
        log_mean = output.log_softmax(-1) + library.log().unsqueeze(-1)
        if self.law == "Poisson":
            return (x * log_mean).sum() - library.sum()
        theta = self.raw.exp()
        if self.law != "NB":
            return negative_binomial_score(log_mean, theta, x).sum()
        log_total = (log_mean.exp() + theta).log()
        gammas = torch.lgamma(x + theta) - torch.lgamma(theta)
        return (gammas + x * log_mean + theta * theta.log() - (x + theta) * log_total).sum()


def layers(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_in, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, num_out))


def compare(law: str, options: argparse.Namespace) -> Row:
    """One row of the table."""
    data = simulated(LAWS[law], options.cells, options.genes)
    ours, encoder = library_steps(LAWS[law], data)
    calls = {
        "svi": ours,
        "foreach": ByHand(law, data, encoder, foreach=True).steps,
        "fused": ByHand(law, data, encoder, fused=True).steps,
    }
    for call in calls.values():
        call(options.steps)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.blocks):
        for name, call in calls.items():
            start = time.process_time()
            call(options.steps)
            times[name].append((time.process_time() - start) / options.steps * 1e3)
    row: Row = {"likelihood": law, "svi, ms": float(np.median(times["svi"]))}
    for name in ("foreach", "fused"):
        ratios = np.array(times["svi"]) / np.array(times[name])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        row[f"by hand, Adam({name}), ms"] = float(np.median(times[name]))
        row[f"svi / {name}"] = f"{middle:.2f} ({low:.2f}-{high:.2f})"
    print(row, flush=True)
    return row


def overhead(options: argparse.Namespace) -> Tables:
    """CPU time of a step of `svi` beside a loop written by hand, with both of torch's fast Adams."""
    return {"Milliseconds a step, median over blocks (quartiles)": [compare(law, options) for law in options.laws]}
