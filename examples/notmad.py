# %% [markdown]
# # NOTMAD: what the model assumes, told by fitting it
#
# Every cell has a network of its own, and nobody measures a cell twice. NOTMAD (Lengerich, Ellington et al., 2021)
# makes that possible by two assumptions: networks are mixtures of a few *archetypal* networks, and the weights of the
# mixture are a smooth function of the cell's covariates. This script draws from those assumptions, fits them, checks
# the result against the truth, asks what covariates do and what interventions would do, looks at the posterior with
# ArviZ, changes a prior, and lets held-out cells choose between models.
#
#     python examples/notmad.py                # about two minutes
#     python examples/notmad.py --fast         # seconds: shows the way, proves nothing
#     python examples/notmad.py --out FOLDER   # where the pictures go

# %%
from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # pictures go to files

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
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for pictures and report")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)
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
# ## 5. What does a covariate do?
#
# The encoder is a sum of one smooth curve a covariate, so its logits can be read covariate by covariate: logits =
# bias + curve 1 + curve 2, exactly, in every draw. The mixture and the edges are not sums; their curves hold with the
# other covariate at its mean. The curve of an edge is what a biologist would draw: how strongly one gene acts on
# another along time, dose or stage, and how sure one can be.

# %%
strong = np.abs(networks["network"]).mean("cell")
place = np.argsort(-strong.values, axis=None)[:3]
edges = [
    (str(strong["regulator"].values[a]), str(strong["target"].values[b]))
    for a, b in zip(*np.unravel_index(place, strong.shape), strict=True)
]
curves = fit.covariate_effects(40, edges=edges, scale="original")
print("\nEdges along the covariates (mean and 90 % interval at the lowest and the highest value)")
for name in test["covariate"].values:
    points = curves.isel(point=np.nonzero(curves["of"].values == name)[0])
    for edge in curves["edge"].values:
        ends = points.sel(edge=edge).isel(point=[0, -1])
        told = [
            f"{m:+.2f} [{low:+.2f}, {high:+.2f}]"
            for m, low, high in zip(
                ends["effect"].values, ends["effect_lower"].values, ends["effect_upper"].values, strict=True
            )
        ]
        print(f"  {name:12} {edge:18} {told[0]}  to  {told[1]}")

# %% [markdown]
# ## 6. Where do cells lie between the archetypes?
#
# Three archetypal networks span a plane, and every cell's network is a point in it. The coordinates depend on networks,
# not on the labels of archetypes, so they mean the same in every draw; the shaded regions hold half of the posterior of
# a cell. New cells are laid on the same map, from their covariates alone.

# %%
cell_map = fit.archetype_map(test)
width = np.sqrt(np.trace(cell_map["covariance"].values, axis1=1, axis2=2))
spread = np.linalg.norm(cell_map["position"].values - cell_map["position"].values.mean(0), axis=1)
print(f"\nMap: posterior spread of a cell {width.mean():.2f}, spread of cells {spread.mean():.2f} (size of effects)")

# %% [markdown]
# ## 7. What would an intervention do?
#
# If edges are causal (no unmeasured common causes, no feedback), setting a gene to a value cuts its regulators off and
# lets the rest of the network respond. `fit.do` predicts this for cells of which only covariates are known, and
# `fit.total_effects` sums the effects over all paths. Here the truth can be asked: we do the experiment in the
# simulator, with its networks cut in the same way. Read the genes together: errors run along the network, so where one
# effect is off, those behind it are too.

# %%
total = fit.total_effects(test, average=True, scale="original")
source = str(total["regulator"].values[np.abs(total["effect"].values).sum(1).argmax()])
effect = fit.do({source: 2.0}, test, average=True, scale="original")
true_networks = truth["true_networks"].sel(cell=test["cell"]).values
cut = true_networks.copy()
j = truth["gene"].values.tolist().index(source)
cut[:, :, j] = 0.0
set_to = np.zeros((len(cut), 1, cut.shape[1]))
set_to[:, 0, j] = 2.0
experiment = (set_to @ np.linalg.inv(np.eye(cut.shape[1]) - cut))[:, 0].mean(0)  # all means are 0 without it
print(f"\ndo({source} = 2): change of the mean of {test.sizes['cell']} cells")
for gene, wanted in zip(truth["gene"].values, experiment, strict=True):
    if gene == source:
        continue
    row = effect.sel(gene=gene)
    low, high = float(row["difference_lower"]), float(row["difference_upper"])
    print(f"  {gene:8} predicted {float(row['difference']):+.2f} [{low:+.2f}, {high:+.2f}]  experiment {wanted:+.2f}")

pictures = {
    "covariate_effects.png": eg.plots.plot_covariate_effects(curves)[0],
    "covariate_logits.png": eg.plots.plot_covariate_effects(curves, show="logit")[0],
    "archetype_map.png": eg.plots.plot_archetype_map(
        cell_map, color=test["covariates"][:, 0].rename(test["covariate"].values[0])
    ),
    "intervention.png": eg.plots.plot_intervention(effect),
}
for name, ax in pictures.items():
    ax.figure.savefig(options.out / name, dpi=150)
print(f"pictures in {options.out}: {', '.join(pictures)}")

# %% [markdown]
# ## 8. The posterior in ArviZ
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
# Everything on one page, warnings first: data, priors as the model has them, how it was fitted, what it found, whether
# the model makes such data. It opens in any browser, offline.

# %%
page = eg.report(fit, train, test, num_samples=60 if options.fast else 200, progress=False)
page.save(options.out / "notmad_report.html")
print("\nWarnings of the report:", *page.warnings, sep="\n  ")

# %% [markdown]
# ## 9. Another prior
#
# A prior is an argument. Effects that are all small, instead of few and large, are a worse description of these data,
# and the density of held-out cells says so.

# %%
small = eg.models.NOTMAD.for_data(train, num_archetypes=3, edge_prior=dist.Normal(0.0, 0.1))
refit = eg.fit(small, train, posterior="hmc", seed=0, **plan)
print("\nLog predictive density of a held-out cell")
print(f"  spike and slab (default)  {float(fit.log_density(test, 200).mean()):.2f}")
print(f"  Normal(0, 0.1)            {float(refit.log_density(test, 200).mean()):.2f}")

# %% [markdown]
# ## 10. Let held-out cells choose
#
# How many archetypes? One order for all cells, or edges that may turn around (`order="projected"`)? `eg.choose` fits
# each candidate to three quarters of the cells, compares log densities of the rest cell by cell, and (unless told not
# to, as here) refits the winner to all cells. Differences within one standard error count as ties and go to the model
# that is listed first, so list simple ones first.

# %%
candidates = {
    "one network": eg.models.NOTMAD.for_data(train, 1),
    "3 archetypes": eg.models.NOTMAD.for_data(train, 3),
    "3 archetypes, projected": eg.models.NOTMAD.for_data(train, 3, order="projected"),
}
quick = plan | {"num_guide_steps": 400, "num_bootstrap": 32}
if options.fast:
    quick |= {"num_restarts": 1, "num_steps": 40, "num_guide_steps": 40, "num_bootstrap": 2}
best, table = eg.choose(candidates, train, refit=False, progress=False, **quick)
print(f"\n{'held-out cells':>26}  {'log density':>11}  {'to the best':>11}  {'s.e.':>5}  {'MSE':>6}")
for name in table["model"].values:
    row = table.sel(model=name)
    print(
        f"{name:>26}  {float(row['log_density']):11.3f}  {float(row['difference']):11.3f}  "
        f"{float(row['difference_se']):5.3f}  {float(row['mse']):6.3f}"
    )
print(f"chosen: {table.attrs['chosen']}")
