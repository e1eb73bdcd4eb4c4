"""MED-MAGMA under rescaling, signs, order, transposition and replicates."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from med_magma_fits import FAMILIES, M, N, P, changed, data_of, fitted, graphs_close

import embergraph as eg


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("m", [None, M])
def test_graphs_do_not_depend_on_scales_and_scales_follow(family: str, m: int | None) -> None:
    data = data_of(m=m)
    rng = np.random.default_rng(7)
    outer = () if m is None else (m,)
    log_a, log_b = rng.normal(0, 3, (*outer, N)), rng.normal(0, 3, (*outer, P))
    scaled = data["expression"].values * np.exp(log_a[..., :, None] + log_b[..., None, :])
    one, other = (fitted(d, **FAMILIES[family]) for d in (data, changed(data, scaled)))
    graphs_close(other.graphs(), one.graphs())
    first, second = one.scales(), other.scales()
    for name, moved in (("log_u", log_a), ("log_v", log_b)):
        centred = moved - moved.mean(-1, keepdims=True)
        np.testing.assert_allclose(second[name] - first[name], centred, atol=1e-7)
        np.testing.assert_allclose(second[f"{name}_sd"], first[f"{name}_sd"], atol=1e-8)
    overall = -2 * (log_a.mean(-1) + log_b.mean(-1))
    np.testing.assert_allclose(second["log_omega"] - first["log_omega"], overall, atol=1e-7)
    graphs_close(fitted(changed(data, scaled * 1e90), **FAMILIES[family]).graphs(), one.graphs())


def test_the_invariant_map_gives_the_same_graphs() -> None:
    data = data_of()
    mapped = changed(data, eg.matrices.quotient(data["expression"].values))
    graphs_close(fitted(mapped).graphs(), fitted(data).graphs())


def test_other_data_give_other_graphs() -> None:
    data = data_of()
    touched = data["expression"].values.copy()
    touched[0, 0] *= 1.5  # no longer row scale times column scale
    one, other = fitted(data).graphs(), fitted(changed(data, touched)).graphs()
    assert float(abs(one["cell_score"] - other["cell_score"]).max()) > 1e-3


@pytest.mark.parametrize("family", ["edges", "gaussian", "automatic", "laplace"])
@pytest.mark.parametrize("m", [None, M])
def test_signs_and_order_carry_over(family: str, m: int | None) -> None:
    data = data_of(m=m)
    rng = np.random.default_rng(3)
    e, f = rng.choice([-1.0, 1.0], N), rng.choice([-1.0, 1.0], P)
    rows, cols = rng.permutation(N), rng.permutation(P)
    one = fitted(data, **FAMILIES[family]).graphs()
    flipped = fitted(changed(data, data["expression"].values * e[:, None] * f), **FAMILIES[family]).graphs()
    moved = fitted(data.isel(cell=rows, gene=cols, cell_other=rows, gene_other=cols), **FAMILIES[family]).graphs()
    for axis, signs, order in (("cell", e, rows), ("gene", f, cols)):
        for name in ("precision", "partial_correlation"):
            wanted = one[f"{axis}_{name}"].values
            np.testing.assert_allclose(flipped[f"{axis}_{name}"], wanted * np.outer(signs, signs), atol=1e-8)
        for name in ("precision", "partial_correlation", "lower", "edge_probability", "score"):
            wanted = one[f"{axis}_{name}"].values[np.ix_(order, order)]
            np.testing.assert_allclose(moved[f"{axis}_{name}"], wanted, atol=1e-8, err_msg=name)
        for name in ("edge_probability", "score"):
            np.testing.assert_allclose(flipped[f"{axis}_{name}"], one[f"{axis}_{name}"], atol=1e-8)


@pytest.mark.parametrize("family", ["edges", "gaussian", "automatic", "laplace"])
def test_cells_and_genes_play_the_same_role(family: str) -> None:
    data = data_of()
    turned = xr.Dataset({"expression": (("cell", "gene"), data["expression"].values.T)})
    one, other = fitted(data, **FAMILIES[family]), fitted(turned, **FAMILIES[family])
    swap = {"cell": "gene", "gene": "cell"}
    first, second = one.graphs(), other.graphs()
    for axis in swap:
        for name in ("precision", "partial_correlation", "edge_probability", "score", "upper"):
            found, wanted = second[f"{swap[axis]}_{name}"].values, first[f"{axis}_{name}"].values
            np.testing.assert_allclose(found, wanted, atol=1e-8, err_msg=f"{axis} {name}")
    np.testing.assert_allclose(other.scales()["log_u"].values, one.scales()["log_v"].values, atol=1e-7)


@pytest.mark.parametrize("m", [M, 6])
def test_replicates_may_come_in_any_order(m: int) -> None:
    data = data_of(m=m)
    order = np.random.default_rng(0).permutation(m)
    one, other = fitted(data), fitted(data.isel(replicate=order))
    graphs_close(other.graphs(), one.graphs())
    np.testing.assert_allclose(other.scales()["log_u"].values, one.scales()["log_u"].values[order], atol=1e-8)


def test_one_replicate_is_a_matrix_and_copies_sharpen() -> None:
    data = data_of()
    single = fitted(data).graphs()
    graphs_close(fitted(data.expand_dims("replicate")).graphs(), single)
    three = fitted(xr.concat([data] * 3, "replicate", data_vars=["expression"])).graphs()
    assert float(three["cell_score"].max()) > 1.3 * float(single["cell_score"].max())
