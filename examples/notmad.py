# %% [markdown]
# # NOTMAD: what the model assumes, told by fitting it
#
# Every cell has a network of its own, and nobody measures a cell twice. NOTMAD (Lengerich, Ellington et al., 2021)
# makes that possible by two assumptions: networks are mixtures of a few *archetypal* networks, and the weights of the
# mixture are a smooth function of the cell's covariates. This script draws from those assumptions, fits them, checks
# the result against the truth, looks at the posterior with ArviZ, and changes a prior.
#
#     python examples/notmad.py           # about a minute
#     python examples/notmad.py --fast    # seconds: shows the way, proves nothing

# %%
from __future__ import annotations

import argparse
import warnings

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine

warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")
import arviz as az

import embergraph as eg
from embergraph import metrics

parser = argparse.ArgumentParser(description="NOTMAD: draw, fit, check, change")
parser.add_argument("--fast", action="store_true", help="few cells, few steps")
options = parser.parse_args()
plan = {"num_restarts": 4, "num_steps": 800, "num_orders": 4, "num_warmup": 100, "num_draws": 150}
if options.fast:
    plan |= {"num_restarts": 2, "num_steps": 100, "num_orders": 2, "num_warmup": 10, "num_draws": 15}

# %% [markdown]
# ## 1. Draws from the prior
#
# The model is one function, `NOTMAD.forward`, read from top to bottom: an order of the genes, effects on the edges
# that the order allows, intercepts, noise, the encoder's weights, and then, cell by cell, Z_i = softmax(f(C_i)) and
# X_i = b_i + X_i W_i + e_i with W_i = sum_k Z_ik W_k. Left without `expression` it simulates.

# %%
truth = eg.datasets.simulated_notmad(seed=0, num_cells=200 if options.fast else 500, num_genes=6, num_covariates=2)
data, transform = eg.standardize(truth, scale="common")
train, test = eg.split(data, every=4)
model = eg.models.NOTMAD.for_data(train, num_archetypes=3)

with torch.random.fork_rng():
    torch.manual_seed(0)
    print("Draws from the prior: order of the genes, edges above 0.2, spread of the simulated expression")
    for _ in range(3):
        draw = poutine.trace(model).get_trace(torch.as_tensor(train["covariates"].values)).nodes
        strong = int((draw["archetypes"]["value"].abs() > 0.2).sum())
        print(
            f"  {draw['order']['value'].tolist()}  {strong:2d} edges  sd {float(draw['expression']['value'].std()):.2f}"
        )

# %% [markdown]
# ## 2. What a mixture of DAGs means
#
# If the archetypes share an order, every mixture is acyclic. If they do not, it is not: a softmax weight is never
# exactly zero, so both directions of a reversed edge are present in every cell. That is why the model has one order,
# with a posterior over orders, and why "edges that turn around between cells" is beyond it (README, limitations).

# %%
one, other = np.zeros((3, 3)), np.zeros((3, 3))
one[0, 1] = one[1, 2] = 1.0
other[0, 1], other[2, 1] = 0.5, 1.0  # 1 -> 2 has become 2 -> 1
mixed = 0.9 * one + 0.1 * other
print(f"\nShare of acyclic networks: archetypes {metrics.acyclic_share(np.stack([one, other]), (0.0,)).item():.0f}, "
      f"their mixture {metrics.acyclic_share(mixed, (0.0,)).item():.0f}")  # fmt: skip
projected = eg.project(torch.as_tensor(mixed))
print(f"Projection keeps the heavier direction and removes {float(projected.removed_mass):.0%} of the weight.")

# %% [markdown]
# ## 3. Fit
#
# `eg.fit` runs the plan: point estimates from several starts, a search over orders, and Hamiltonian Monte Carlo for
# each sampled order. Networks of held-out cells need their covariates only.

# %%
fit = eg.fit(model, train, posterior="hmc", seed=0, **plan)
print("\n" + eg.as_text(fit.report(train, test, num_samples=200)))
networks = fit.networks(test, scale="original")

# %% [markdown]
# ## 4. Recovery
#
# The simulation kept the truth. Baselines first: a method that does not beat them has shown nothing.

# %%
raw_test = transform.invert(test)
rivals = {
    "zero graph": eg.baselines.ZeroGraph(),
    "one network for all": eg.baselines.Population(),
    "k-means, 3 networks": eg.baselines.KMeansClustered(3),
    "oracle": eg.baselines.Oracle(),
}
scores = {
    name: metrics.evaluate(rival.fit(transform.invert(train)).networks(raw_test), raw_test)
    for name, rival in rivals.items()
}
scores["NOTMAD"] = metrics.evaluate(networks, raw_test)
print(f"\n{'held-out cells':>22}  {'MSE':>6}  {'AUPR':>6}  {'deviations':>10}")
for name, score in scores.items():
    print(f"{name:>22}  {score['mse']:6.3f}  {score['aupr']:6.3f}  {score['deviation_correlation']:10.3f}")
covered = metrics.interval_coverage(networks["lower"], networks["upper"], truth["true_networks"].sel(cell=test["cell"]))
print(f"90 % intervals cover {float(covered['coverage'].sel(edges='true')):.0%} of the true effects.")

# %% [markdown]
# ## 5. The posterior in ArviZ
#
# `fit.posterior` is an xarray DataTree with ArviZ's groups; `eg.to_arviz` hands it to whatever ArviZ is installed.
# Chains are orders: they may differ by design, so judge each by itself (`fit.report` does).

# %%
tree = fit.posterior(train, num_samples=100 if options.fast else 400)
posterior = eg.to_arviz(tree)
print("\n", az.summary(posterior, var_names=["sigma", "encoder_bias"], kind="stats"))
observed, replicated = tree["observed_data"]["expression"], tree["posterior_predictive"]["expression"]
spread = replicated.std("cell").quantile([0.05, 0.95], dim=("chain", "draw"))
inside = (observed.std("cell") > spread[0]) & (observed.std("cell") < spread[1])
print(
    f"Predictive check: the spread of {int(inside.sum())} of {inside.size} genes lies in its 90 % predictive interval."
)
if not options.fast:
    az.plot_forest(posterior, var_names=["sigma"], combined=True)

# %% [markdown]
# ## 6. Another prior
#
# A prior is an argument. Effects that are all small, instead of few and large, are a worse description of these data,
# and the density of held-out cells says so.

# %%
small = eg.models.NOTMAD.for_data(train, num_archetypes=3, edge_prior=dist.Normal(0.0, 0.1))
refit = eg.fit(small, train, posterior="hmc", seed=0, **plan)
print("\nLog predictive density of a held-out cell")
print(f"  spike and slab (default)  {float(fit.log_density(test, 200).mean()):.2f}")
print(f"  Normal(0, 0.1)            {float(refit.log_density(test, 200).mean()):.2f}")
