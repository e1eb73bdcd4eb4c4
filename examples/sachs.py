# %% [markdown]
# # Protein signalling under nine conditions: one network a condition, or networks that share what they can?
#
# Sachs et al. (Science 2005) measured 11 phosphoproteins and phospholipids in 7466 single T cells under nine
# conditions: two stimulations, five inhibitors, two activators. Each reagent acts on one protein, so the network that
# links the proteins should differ between conditions, but not in everything.
#
# NOTMAD describes the network of every cell as a mixture of a few archetypal networks, with weights that depend on the
# cell's covariates (here: which condition it is in). This script fits it, holds it against the cheapest alternatives on
# held-out cells, and asks which edges change under which reagent.
#
#     python examples/sachs.py                # about two minutes
#     python examples/sachs.py --fast         # a tenth of the cells and few steps: shows the way, proves nothing
#     python examples/sachs.py --out FOLDER   # where posterior.nc and the pictures go

# %%
from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # pictures go to files

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import embergraph as eg

parser = argparse.ArgumentParser(description="NOTMAD on the cells of Sachs et al. (2005)")
parser.add_argument("--fast", action="store_true", help="a tenth of the cells, few steps")
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for posterior.nc, pictures and report")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)
started = time.perf_counter()

# %% [markdown]
# ## Data
#
# Log intensities; every fourth cell of each condition is held out. All proteins are divided by one common number, so
# that networks stay in units that can be compared between proteins.

# %%
data = eg.datasets.sachs()
if options.fast:
    data = data.isel(cell=slice(None, None, 10))
train, test = eg.split(data, every=4, within="environment")
train, standardizer = eg.standardize(train, scale="common")
test = standardizer.apply(test)
conditions = data["condition"].values.tolist()
print(f"{train.sizes['cell']} training and {test.sizes['cell']} test cells, {len(conditions)} conditions")

# %% [markdown]
# ## Fit
#
# Nine archetypes: enough for every condition to have a network of its own, if the data ask for it; what they share is
# learnt from all of them. `noise="free"` gives each protein its own noise. The plan finds the order of the proteins
# by annealing and sampling, then fits a mean-field posterior for every order.

# %%
model = eg.models.NOTMAD.for_data(train, num_archetypes=4 if options.fast else 9, noise="free")
if options.fast:
    plan = {"num_restarts": 2, "num_steps": 150, "num_orders": 2}
else:
    plan = {"num_restarts": 4, "num_steps": 1000}
fit = eg.fit(model, train, posterior="mean_field", seed=0, **plan)
print(f"\nfitted in {time.perf_counter() - started:.0f} s\n")
print(eg.as_text(fit.report(train, test, num_samples=200)))

# %% [markdown]
# ## Who predicts held-out cells best?
#
# Every method predicts the network, the intercepts and the noise of a test cell from its condition alone, and all
# networks are acyclic: NOTMAD's posterior mean is projected where its orders disagree. MSE (squared common units) and
# log density (nats a cell) are about prediction; average precision (AUPR) is about the 18 edges of the literature, with
# their directions and without. These edges contain a cycle, so no DAG can have all of them.
#
# Methods differ in noise as well as in networks: one network a condition comes with noise of that condition, NOTMAD has
# one noise a protein. To tell the two apart, both are also shown with the noise of the other.


# %%
def with_noise(networks: xr.Dataset, of_train: xr.Dataset, *, by_condition: bool) -> xr.Dataset:
    """The same networks with noise estimated on the training cells, for each protein or protein and condition."""
    error = eg.metrics.residuals(of_train, train)
    if not by_condition:
        return networks.assign(sigma=("gene", error.std(axis=0)))
    group = train["environment"].values
    sigma = np.stack([error[group == code].std(axis=0) for code in range(len(conditions))])
    return networks.assign(sigma=(("cell", "gene"), sigma[test["environment"].values]))


print("\nfitting the baselines ...", flush=True)
single = eg.baselines.LabelClustered(label="environment").fit(train)
of_fit = {name: fit.networks(cells) for name, cells in (("train", train), ("test", test))}
candidates = {
    "no edges": eg.baselines.ZeroGraph().fit(train).networks(test),
    "one network for all": eg.baselines.Population().fit(train).networks(test),
    "one network a condition": single.networks(test),
    "NOTMAD": of_fit["test"],
}
same_noise = {
    "one network a condition, noise a protein": with_noise(
        candidates["one network a condition"], single.networks(train), by_condition=False
    ),
    "NOTMAD, noise a protein and condition": with_noise(of_fit["test"], of_fit["train"], by_condition=True),
}

scores = {name: eg.metrics.evaluate(networks, test) for name, networks in (candidates | same_noise).items()}
print(f"\n{'held-out cells':42}{'MSE':>8}{'log density':>13}{'AUPR':>8}{'undirected':>12}")
for name, score in scores.items():
    numbers = f"{score['mse']:8.3f}{score['log_density']:13.2f}{score['aupr']:8.2f}{score['skeleton_aupr']:12.2f}"
    print(f"{name:42}{numbers}")

best = {
    key: sign(candidates, key=lambda name: scores[name][key])
    for key, sign in (("mse", min), ("log_density", max), ("aupr", max), ("skeleton_aupr", max))
}
chance = scores["NOTMAD"]["edge_rate"], scores["no edges"]["skeleton_aupr"]
print(f"""
Best MSE: {best["mse"]}. Best log density: {best["log_density"]}.
Best AUPR: {best["aupr"]}, {scores[best["aupr"]]["aupr"]:.2f} where chance has {chance[0]:.2f}; \
undirected: {best["skeleton_aupr"]}, {scores[best["skeleton_aupr"]]["skeleton_aupr"]:.2f} of {chance[1]:.2f}.""")
density = {name: f"{score['log_density']:.2f}" for name, score in scores.items()}
print(f"""With one noise a protein: NOTMAD {density["NOTMAD"]}, \
one network a condition {density["one network a condition, noise a protein"]} nats a cell.
With noise of every condition: NOTMAD {density["NOTMAD, noise a protein and condition"]}, \
one network a condition {density["one network a condition"]} nats a cell.""")

# %% [markdown]
# ## Which edges change under which reagent?
#
# Every condition against the plain stimulation (anti-CD3/CD28), draw by draw of the posterior. Edges count as changed
# whose 90 % interval excludes zero and whose mean changes by more than 0.05. Intervals cover weights and orders, but
# the mean-field posterior is too narrow for the strongest edges: a hint, not a test.

# %%
code = {condition: test["environment"].values == i for i, condition in enumerate(conditions)}
contrasts = {
    condition: fit.contrast(test.isel(cell=code[condition]), test.isel(cell=code["cd3_cd28"]))
    for condition in conditions
    if condition != "cd3_cd28"
}


def strongest_changes(contrast: xr.Dataset, count: int = 3) -> list[str]:
    """The largest differences whose interval excludes zero, as text."""
    clear = (contrast["lower"] > 0) | (contrast["upper"] < 0)
    size = np.where(clear, np.abs(contrast["difference"]), 0.0)
    places = zip(*np.unravel_index(np.argsort(-size, axis=None)[:count], size.shape), strict=True)
    edges = [contrast.isel(regulator=a, target=b) for a, b in places if size[a, b] > 0]
    return [f"{e['regulator'].item()}→{e['target'].item()} {e['difference'].item():+.2f}" for e in edges]


print(f"\n{'against cd3_cd28':16} {'acts on':8} {'changed':>8} {'touching it':>12}   strongest changes")
for condition, contrast in contrasts.items():
    protein = data["regime_target"].sel(condition=condition).item()
    clear = ((contrast["lower"] > 0) | (contrast["upper"] < 0)) & (np.abs(contrast["difference"]) > 0.05)
    touching = int((clear & ((clear["regulator"] == protein) | (clear["target"] == protein))).sum()) if protein else "-"
    changes = ", ".join(strongest_changes(contrast))
    print(f"{condition:16} {protein or '-':8} {int(clear.sum()):8} {touching:>12}   {changes}")

# %% [markdown]
# ## Posterior, pictures and report
#
# `report.html` is one page on the fit, warnings first: data, priors, how it was fitted, what it found, whether the
# model makes such data. It opens in any browser, offline.
#
# `posterior.nc` holds draws of everything with names, for ArviZ: `az.from_netcdf("posterior.nc", engine="h5netcdf")`.

# %%
tree = fit.posterior(train, num_samples=20 if options.fast else 150, prior=False)
smaller = {"/posterior_predictive": {"expression": {"dtype": "float32"}}}
tree.to_netcdf(options.out / "posterior.nc", engine="h5netcdf", encoding=smaller)

one_each = of_fit["test"].isel(cell=[int(np.argmax(code[condition])) for condition in conditions])
one_each = one_each.assign_coords(cell=conditions)
pictures = {
    "network.png": eg.plots.plot_graph(one_each, cell="cd3_cd28", threshold=0.05),
    "edges.png": eg.plots.plot_edges(one_each),
    "change_under_mek_inhibitor.png": eg.plots.plot_contrast(contrasts["u0126"]),
    "archetypes.png": eg.plots.plot_archetypes(tree)[0],
}
pictures["change_under_mek_inhibitor.png"].set_title("u0126 (inhibits Mek) minus cd3_cd28")
for name, ax in pictures.items():
    ax.figure.savefig(options.out / name, dpi=150)
    plt.close(ax.figure)
eg.report(fit, train, test, num_samples=40 if options.fast else 150, progress=False).save(options.out / "report.html")
megabytes = (options.out / "posterior.nc").stat().st_size / 1e6
print(f"\n{options.out}: report.html, posterior.nc ({megabytes:.0f} MB), {', '.join(pictures)}")
print(f"done in {time.perf_counter() - started:.0f} s")
