# %% [markdown]
# # MED-MAGMA: graphs of cells and of genes that do not depend on how well each was measured
#
# One cell is captured well and another badly; one gene is amplified and another is not. The matrix that comes out is
# D = (u v') o X: every row multiplied by an unknown u_i, every column by an unknown v_j. MED-MAGMA asks for the two
# graphs behind X, one between cells and one between genes, and makes sure that u and v cannot touch the answer. This
# script breaks other methods with such noise, shows what the method keeps and what it loses, why it must be
# regularised, what helps when data are few, and ends with blood cells.
#
#     python examples/med_magma.py                # a minute or two
#     python examples/med_magma.py --fast         # seconds: shows the way, proves nothing
#     python examples/med_magma.py --out FOLDER   # where the pictures and the report go

# %%
from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # pictures go to files

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")
import arviz as az

import embergraph as eg
from embergraph.undirected_scores import ami, average_precision, nominal_assortativity

parser = argparse.ArgumentParser(description="MED-MAGMA: noise, scales, regularisation, knowledge, blood cells")
parser.add_argument("--fast", action="store_true", help="small matrices, few repetitions")
parser.add_argument("--out", type=Path, default=Path("out"), help="folder for pictures and report")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)
started = time.perf_counter()
MEDMAGMA, SparseGraph, SpectralGraph = eg.models.MEDMAGMA, eg.models.SparseGraph, eg.models.SpectralGraph
SIZE = (30, 40) if options.fast else (60, 80)
DRAWS = 50 if options.fast else 500


def save(ax: plt.Axes, name: str) -> None:
    """Write the figure of these Axes as a small picture."""
    ax.figure.savefig(options.out / f"med_magma_{name}.png", dpi=90, bbox_inches="tight")
    plt.close(ax.figure)


def recovery(graphs: xr.Dataset, truth: xr.Dataset) -> str:
    """Average precision of the graph of cells and of the graph of genes; 1 is perfect, chance is about .03."""
    both = (average_precision(graphs[f"{axis}_score"], truth[f"true_{axis}_precision"]) for axis in ("cell", "gene"))
    return " / ".join(f"{value:.2f}" for value in both)


# %% [markdown]
# ## 1. What multiplicative noise does
#
# `simulated_matrix` draws two trees, weights with random signs on their edges, and X ~ Normal(0, inverse of the
# Kronecker sum of both precision matrices): entry (i, j) depends on other genes of cell i and on gene j in other cells.
# With `noise=1` rows and columns are multiplied by chi-square numbers, which differ a hundredfold and more. The same
# seed gives the same graphs and the same X, so that nothing but the noise changes.
#
# A Gram matrix asks which rows point the same way, and the largest rows shout loudest. GmGM models the matrix as it is.
# The nonparanormal skeptic takes ranks within each row or column, which survives the scaling of that axis but not of
# the other one. Dividing rows and columns by what makes their squares sum to the same number removes any u and v, and
# that is the strongest baseline. MED-MAGMA fits the same graphs whatever the noise, to all printed digits.

# %%
rivals = {
    "Gram matrix, inverted": eg.baselines.SingleAxis(),
    "GmGM": eg.baselines.GmGM(),
    "GmGM on ranks (skeptic)": eg.baselines.Skeptic(),
    "row and column scaling": eg.baselines.RowColumnScaling(),
}
print(f"1. Average precision, cells / genes, {SIZE[0]} x {SIZE[1]}\n{'':26}{'no noise':>14}{'noise':>14}")
worlds = {noise: eg.datasets.simulated_matrix(*SIZE, noise=noise, seed=1) for noise in (0.0, 1.0)}
for name, rival in rivals.items():
    print(f"{name:26}" + "".join(f"{recovery(rival.fit(world), world):>14}" for world in worlds.values()))
fits = [eg.fit(MEDMAGMA.for_data(world), world, progress=False) for world in worlds.values()]
graphs = [fit.graphs() for fit in fits]
found = [recovery(graph, world) for graph, world in zip(graphs, worlds.values(), strict=True)]
print(f"{'MED-MAGMA':26}" + "".join(f"{text:>14}" for text in found))
change = max(float(np.abs(graphs[0][name] - graphs[1][name]).max()) for name in ("cell_score", "gene_score"))
print(f"Largest change of a score of MED-MAGMA by the noise: {change:.0e}")

# %% [markdown]
# MED-MAGMA and plain scaling are close here, and on one small matrix they always are: what limits both is that 60 x 80
# numbers say little about 1770 + 3160 possible edges. `fit.report` says so in its own words ("visible weight"). What
# the model adds to scaling is in the rest of this script: probabilities, intervals, scales, and room for knowledge.

# %%
data, fit = worlds[1.0], fits[1]
print("\n" + eg.as_text(fit.report(data, num_samples=DRAWS)))

# %% [markdown]
# ## 2. What the invariant map loses, and how it comes back
#
# `eg.matrices.quotient` is the map behind the invariance: it takes row and column means off log|D| and keeps signs. All
# matrices that differ only by scales become one. Of n p numbers it loses n + p - 1, and these are the scales. They are
# not gone: how large cell i is follows from D once the graphs are known, and a posterior says how well.

# %%
stretched = data["expression"] * np.exp(np.linspace(-5, 5, SIZE[0]))[:, None]
gap = float(np.abs(eg.matrices.quotient(stretched) / eg.matrices.quotient(data["expression"]) - 1).max())
print(f"\n2. The map changes by {gap:.0e} when cells are stretched by up to {np.exp(10):.0f}.")

scales = fit.scales(interval=0.9)
for name, nodes in (("log_u", "cells"), ("log_v", "genes")):
    true, estimate = data[f"true_{name}"], scales[name]
    inside = float(((scales[f"{name}_lower"] <= true) & (true <= scales[f"{name}_upper"])).mean())
    sd, agreement = float(scales[f"{name}_sd"].median()), float(xr.corr(true, estimate))
    print(f"Scales of {nodes}: correlation with the truth {agreement:.4f}, posterior sd {sd:.2f}; 90 % intervals hold "
          f"{inside:.0%} of the true values")  # fmt: skip

# %% [markdown]
# The intervals are given the estimated graphs, so they tend to be a little narrow. Draws of the posterior go to ArviZ
# as they are; crosses are the true scales.

# %%
posterior = eg.to_arviz(fit.posterior(data, DRAWS))
some = data["cell"].values[:12].tolist()
(ax,) = az.plot_forest(posterior, var_names=["log_u"], coords={"cell": some}, combined=True, hdi_prob=0.9,
                       figsize=(6, 4.2), textsize=10)  # fmt: skip
heights = sorted(ax.get_yticks(), reverse=True)
ax.plot(data["true_log_u"].sel(cell=some), heights, "x", color="#d55e00", label="truth")
ax.set_yticks(heights, some)
ax.set_xlabel("log scale of the cell (90 % interval)")
ax.set_title("Scales come back with intervals")
ax.legend(frameon=False)
save(ax, "scales")

# %% [markdown]
# ## 3. Tail dependence, which no copula of ranks has
#
# Two genes that have nothing to do with each other still share the scale of the cell. In a cell with a large u both
# are large in size, up or down. Such genes are uncorrelated and yet extreme together. Methods that turn each gene into
# ranks or normal scores and then use a Gaussian (skeptic, Gaussian copulas) cannot make this: in a Gaussian copula
# uncorrelated means independent, and extremes meet by chance, in one cell of a hundred for the outer tenth.

# %%
cells = eg.datasets.simulated_matrix(300 if options.fast else 1000, 12, noise=1.0, noise_law="lognormal", seed=3)
unlinked = cells["true_gene_precision"].values == 0
spread = np.abs(np.corrcoef(cells["true_expression"].values.T))
first, second = np.unravel_index(np.argmin(np.where(unlinked, spread, 1.0)), unlinked.shape)
names = cells["gene"].values[[first, second]]
panels = eg.plots.plot_tail_dependence(*(cells["expression"].sel(gene=name).rename(name) for name in names))
before = eg.plots.plot_tail_dependence(*(cells["true_expression"].sel(gene=name) for name in names))
shares = [panel.get_title().split(": ")[1] for panel in (before[0], *panels)]
print(f"\n3. Two genes without an edge, correlation {spread[first, second]:.3f}: {shares[0]} before noise, {shares[1]} "
      f"after; a Gaussian copula of the same rank correlation has {shares[2]}")  # fmt: skip
panels[0].set_title(f"as measured: {shares[1]}")
plt.close(before[0].figure)
save(panels[0], "tails")

# %% [markdown]
# ## 4. Why regularisation is essential
#
# Two precision matrices have about (n^2 + p^2) / 2 unknowns, and one matrix has n p numbers. If there are more genes
# than cells, the moments of the genes have zero eigenvalues, the likelihood grows without bound, and there is no
# estimate. The library says so instead of returning what the optimiser happened to reach.

# %%
print("\n4. Spectral estimate (as in GmGM, every eigenvalue free) against the amount of shrinkage")


def spectral(shrink: float | str) -> eg.MEDMAGMAFit:
    """The same data with free eigenvalues, moments shrunk towards a multiple of the identity."""
    model = MEDMAGMA.for_data(data, cell_graph=SpectralGraph(shrink), gene_graph=SpectralGraph(shrink))
    return eg.fit(model, data, progress=False)


try:
    spectral(0.0)
except eg.NumericalError as error:
    print(f"   none: NumericalError, {error}")
for shrink in (0.5, 0.9) if options.fast else (0.01, 0.1, 0.5, 0.7, 0.8, 0.9, 0.95, "auto"):
    shrunk = spectral(shrink).graphs(score="z")  # pairs ranked by the size of partial correlations
    print(f"   {shrink!s:>6}: {recovery(shrunk, data)}")
print(f"   sparse prior: {found[1]}")

# %% [markdown]
# Too little shrinkage gives numbers that look like graphs and are not. The sparse prior (the default) has no such knob:
# each pair has an edge or not, with a probability that is weighed against the data, about two neighbours a node being
# expected. Only probabilities above .95 can be read as such; below, they rank pairs.

# %% [markdown]
# ## 5. What more matrices and knowledge buy
#
# The same cells and genes measured several times (or in several panels) share both graphs; every matrix has scales of
# its own. Pooling is worth more than any estimator. So is knowing which nodes are hubs, such as regulators:
# `propensity` takes positive numbers, of which only ratios count. Here it gets the true degrees, which is the best
# case. (One data set each; another seed moves the numbers by some hundredths, all columns alike.)

# %%
five = eg.datasets.simulated_matrix(*SIZE, num_replicates=5, seed=1)
degrees = {axis: (five[f"true_{axis}_precision"] != 0).sum(axis).values - 1.0 for axis in ("cell", "gene")}
print(f"\n5. Average precision, cells / genes\n{'matrices':>11}{'scaling only':>16}{'MED-MAGMA':>16}{'hubs known':>16}")
for count in (1, 5):
    some_matrices = five.isel(replicate=slice(count))
    plain = MEDMAGMA.for_data(some_matrices)
    informed = MEDMAGMA.for_data(
        some_matrices,
        cell_graph=SparseGraph(propensity=degrees["cell"]),
        gene_graph=SparseGraph(propensity=degrees["gene"]),
    )
    row = [recovery(eg.baselines.RowColumnScaling().fit(some_matrices), five)]
    row += [recovery(eg.fit(m, some_matrices, progress=False).graphs(), five) for m in (plain, informed)]
    print(f"{count:11}" + "".join(f"{text:>16}" for text in row))

# %% [markdown]
# ## 6. Blood cells
#
# 700 human blood cells (Zheng et al. 2017), every second one here to keep this short. Counts go in raw: no logarithm
# and no division by depth, since u stands for depth. `choose_genes` keeps variable genes that few cells lack, about as
# many as there are cells.
#
# One thing is different from the simulation: counts are never negative. After scaling, most pairs of genes point the
# same way, because what all have in common, the mean, is in the data. A sparse graph cannot hold so many edges: the
# default prior notices, warns and falls back on the spectral one, which is asked for here from the start. It can hold a
# common profile, one direction of large variance, and what is left speaks of the edges. Its shrinkage is fixed at 0.9,
# in the flat part of the table of section 4. Or take the profile out first, with `eg.matrices.remove_profile`.

# %%
blood = eg.datasets.pbmc().isel(cell=slice(None, None, 8 if options.fast else 2))
blood = eg.matrices.choose_genes(blood, target=60 if options.fast else None)
scaled = eg.matrices.sinkhorn_scale(blood["expression"].astype(float))[0].values
cosines = (scaled.T @ scaled)[np.triu_indices(blood.sizes["gene"], 1)] / len(scaled)
zeros = float((blood["expression"] == 0).mean())
print(f"\n6. {blood.sizes['cell']} cells, {blood.sizes['gene']} genes, {zeros:.0%} zeros. Median cosine of two genes: "
      f"{np.median(cosines):.2f}; independent genes of mean zero have {len(scaled) ** -0.5:.2f} in size")  # fmt: skip
model = MEDMAGMA.for_data(blood, cell_graph=SpectralGraph(0.9), gene_graph=SpectralGraph(0.9))
fit = eg.fit(model, blood, num_steps=200, tolerance=1e-5, progress=False)
print(f"Settled: {'yes' if fit.settings['converged'] else 'no'}, after {fit.history.sizes['step']} sweeps\n")
graphs = fit.graphs()

# %% [markdown]
# Do linked cells have the same label? The labels come from the nearest population of sorted cells and were not used.
# Each cell keeps its k strongest partners; Louvain clusters of that graph are compared with the labels by adjusted
# mutual information (1: the same, 0: chance), and assortativity asks the same of single edges. Differences between
# methods are small, and another k moves them as much; on one matrix scaling does most of the work, and the scores that
# MED-MAGMA ranks pairs by are hardly more than that. GmGM has to be given logarithms, which tame the scales by hand;
# with them it does as well here. Who knows the noise can remove it; the others need the invariance.

# %%
candidates = {
    "GmGM on log(1 + counts)": eg.baselines.GmGM().fit(blood.assign(expression=np.log1p(blood["expression"]))),
    "row and column scaling": eg.baselines.RowColumnScaling().fit(blood),
    "MED-MAGMA, scores": graphs,
    "MED-MAGMA, partial corr.": graphs.assign(cell_score=graphs["cell_partial_correlation"]),
}
print(f"{'k = 5; 10; 20':26}{'AMI':>18}{'assortativity':>20}")
for name, candidate in candidates.items():
    chosen = [eg.graph_rules.top_k(candidate["cell_score"], k) for k in (5, 10, 20)]
    agreement = "; ".join(f"{ami(blood['label'], eg.graph_rules.clusters(graph)):.2f}" for graph in chosen)
    assortative = "; ".join(f"{nominal_assortativity(graph, blood['label']):.2f}" for graph in chosen)
    print(f"{name:26}{agreement:>18}{assortative:>20}")

# %% [markdown]
# The strongest pairs of genes, with 90 % intervals of partial correlations and the probability that they exceed .05.
# Numbers are small because moments were shrunk: compare pairs with each other, not with other studies. Intervals hold
# the rest of the graph fixed, so they are too narrow; probabilities above .95 can be read as "clearly linked in this
# model", lower ones only rank.

# %%
strongest = fit.strongest("gene", 12, score="z")  # by the size of partial correlations
print(f"\n{'strongest pairs of genes':26}{'partial r':>10}{'90 % interval':>16}{'P(> .05)':>10}")
for i in range(12):
    pair = strongest.isel(gene_edge=i)
    print(f"{pair['gene_edge'].item():26}{pair['partial_correlation'].item():10.3f}"
          f"{pair['lower'].item():9.3f}{pair['upper'].item():7.3f}{pair['edge_probability'].item():10.3f}")  # fmt: skip

# %% [markdown]
# Pictures: both graphs as networks. Cells are coloured by label. Of the genes those are shown that are most typical of
# one kind of cell, in its colour; edges know nothing of labels, and yet join genes of one kind more often than
# chance would (0). The matrix shows the ten strongest partners of every cell, sorted by label: blocks are kinds of
# cells.

# %%
cell_graph = eg.graph_rules.top_k(graphs["cell_partial_correlation"], 4)
ax = eg.plots.plot_undirected(cell_graph, labels=blood["label"])
ax.set_title("Blood cells, each with its 4 strongest partners")
save(ax, "cells")
common = [kind for kind in np.unique(blood["label"]) if (blood["label"] == kind).sum() >= 10]
profile = np.stack([scaled[blood["label"].values == kind].mean(0) for kind in common])
profile /= profile.mean(0)  # 1: as in the other kinds of cells
typical = np.unique(np.argsort(-profile, axis=1)[:, :4])
names = blood["gene"].values[typical]
among = graphs["gene_partial_correlation"].sel(gene=names, gene_other=names)
gene_graph = eg.graph_rules.top_k(among, 3)
kinds = np.array(common)[profile[:, typical].argmax(0)]
assortative = nominal_assortativity(gene_graph, kinds)
print(f"\nAssortativity of {len(names)} typical genes by the kind of cell: {assortative:.2f}")
ax = eg.plots.plot_undirected(gene_graph, labels=kinds, ax=plt.subplots(figsize=(8, 6.5))[1])
ax.set_title("Genes typical of a kind of cell, each with its 3 strongest partners (blue: negative)")
save(ax, "genes")
partners = eg.graph_rules.top_k(graphs["cell_partial_correlation"], 10)
save(eg.plots.plot_graph_matrix(partners, labels=blood["label"]), "cell_matrix")

# %% [markdown]
# ## What the scales of cells are
#
# u is to counts what the depth of a cell is: how much was captured. It follows the total count over all genes, which
# the model has not seen, but not in lockstep, since totals also hold what a cell is doing. On counts the posterior of
# scales is far from normal (the report's Pareto k is far above 0.7): read scales in order of size, and not the exact
# ends of intervals.

# %%
scales = fit.scales()
depth = np.log(blood["total_counts"])
print(f"\nCorrelation of log u with the log of total counts: {float(xr.corr(scales['log_u'], depth)):.2f}")
means = scales["log_u"].groupby(blood["label"].rename("kind")).mean()
means = means.sortby(means)
print("Mean by kind: " + ", ".join(f"{kind} {float(means.sel(kind=kind)):+.2f}" for kind in means["kind"].values))
save(eg.plots.plot_scales(scales, labels=blood["label"]), "cell_scales")

# %% [markdown]
# ArviZ has the scales and the strongest edges too.

# %%
posterior = eg.to_arviz(fit.posterior(blood, DRAWS))
few = blood["cell"].values[:4].tolist()
print(az.summary(posterior.posterior[["log_u"]].sel(cell=few), kind="stats", round_to=2))
drawn = set(posterior.posterior["gene_edge"].values.tolist())
pairs = [pair for pair in strongest["gene_edge"].values.tolist() if pair in drawn]
(ax,) = az.plot_forest(posterior, var_names=["gene_partial_correlation"], coords={"gene_edge": pairs}, combined=True,
                       hdi_prob=0.9, figsize=(6, 4.2), textsize=10)  # fmt: skip
ax.set_yticks(ax.get_yticks(), [label.get_text().split("[")[-1].rstrip("]") for label in ax.get_yticklabels()])
ax.set_xlabel("partial correlation (90 % interval)")
ax.set_title("Strongest pairs of genes")
save(ax, "gene_edges")

# %% [markdown]
# One page with everything on this fit, warnings first; it opens in any browser, offline.

# %%
page = eg.report(fit, blood, num_samples=DRAWS, progress=False)
page.save(options.out / "med_magma_report.html")
print("\nWarnings of the report:", *page.warnings, sep="\n  ")
print(f"\n{options.out}: {', '.join(sorted(path.name for path in options.out.glob('med_magma_*')))}")
print(f"done in {time.perf_counter() - started:.0f} s")
