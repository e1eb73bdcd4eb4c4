"""The simulator of environments: purity, resets, interventions, truth."""

import numpy as np
import pytest
import xarray as xr

from embergraph.data import validate
from embergraph.datasets import simulated_environments
from embergraph.models.parts.errors import DataError

SMALL = {"num_latents": 5, "num_genes": 30, "edge_probability": 0.2, "num_cells": 200}


def block(data: xr.Dataset, name: str, place: int) -> np.ndarray:
    """A variable in the cells of one environment."""
    return data[name].values[data["environment"].values == place]


@pytest.mark.parametrize("graph", ["empty", "chain", "growing"])
def test_sweep_over_one_node_leaves_nothing_behind(graph: str) -> None:
    settings = {"seed": 4, "graph": graph, **SMALL}
    baseline = simulated_environments(offsets=[{}], **settings)
    for offset in (-20.0, 0.5, 20.0):
        moved = simulated_environments(offsets=[{0: offset}], **settings)
        assert not np.allclose(moved["expression"], baseline["expression"])
    after = simulated_environments(offsets=[{1: 0.0}], **settings)
    xr.testing.assert_identical(after, baseline)
    # The same within one call: what an earlier environment did to node 0 is undone in the next one.
    sweep = simulated_environments(offsets=[{0: 20.0}, {1: 0.0}], **settings)
    calm = simulated_environments(offsets=[{}, {}], **settings)
    np.testing.assert_array_equal(block(sweep, "expression", 1), block(calm, "expression", 1))
    np.testing.assert_array_equal(block(calm, "expression", 0), baseline["expression"])


def test_offsets_and_other_environments_change_neither_mixing_nor_noise() -> None:
    few = simulated_environments(3, num_cells=[40, 50, 60])
    many = simulated_environments(3, offsets=[{}, {}, {0: 1.0}, {1: 5.0}], num_cells=[90, 50, 60, 10])
    xr.testing.assert_equal(few["true_mixing"], many["true_mixing"])
    noise = [data["expression"] - data["true_c"] @ data["true_mixing"] for data in (few, many)]
    for place in (1, 2):
        first, second = (
            part.values[data["environment"] == place] for part, data in zip(noise, (few, many), strict=True)
        )
        np.testing.assert_allclose(first, second, atol=1e-12)
    fresh = simulated_environments(3, num_cells=[40, 50, 60], cell_seed=9)
    xr.testing.assert_equal(few["true_mixing"], fresh["true_mixing"])
    assert abs(np.corrcoef(few["true_z"].values.ravel(), fresh["true_z"].values.ravel())[0, 1]) < 0.9
    assert not np.isin(fresh["true_z"].values, few["true_z"].values).any()


def test_same_seed_same_data_and_the_caller_keeps_the_random_state(tmp_path) -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    data = simulated_environments(5, graph="growing", num_cells=30)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    xr.testing.assert_identical(data, simulated_environments(5, graph="growing", num_cells=30))
    assert not np.allclose(data["expression"], simulated_environments(6, graph="growing", num_cells=30)["expression"])
    validate(data)
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    assert xr.load_dataset(tmp_path / "data.nc", engine="h5netcdf")["expression"].equals(data["expression"])


def test_causes_solve_the_latent_equations() -> None:
    offsets = [{}, {2: 4.0}]
    data = simulated_environments(1, graph="multi_parent", offsets=offsets, **SMALL)
    edges = data["true_graph"].values
    solved = data["true_z"].values @ np.linalg.inv(np.eye(5) - edges)
    np.testing.assert_allclose(data["true_c"], solved, atol=1e-12)
    assert np.allclose(np.tril(edges), 0)


def test_hard_interventions_cut_incoming_edges() -> None:
    settings = {"seed": 2, "graph": "chain", "offsets": [{}, {2: 3.0}, {3: 0.0}], **SMALL}
    soft, hard = (simulated_environments(intervention=kind, **settings) for kind in ("noise", "hard"))
    xr.testing.assert_equal(soft["true_z"], hard["true_z"])
    np.testing.assert_array_equal(block(soft, "true_c", 0), block(hard, "true_c", 0))
    for place, target in ((1, 2), (2, 3)):
        z, c = block(hard, "true_z", place), block(hard, "true_c", place)
        np.testing.assert_array_equal(c[:, target], z[:, target])
        other = [k for k in range(1, 5) if k != target]
        weights = hard["true_graph"].values[[k - 1 for k in other], other]
        np.testing.assert_allclose(c[:, other], z[:, other] + weights * c[:, [k - 1 for k in other]])
        assert not np.allclose(block(soft, "true_c", place)[:, target], z[:, target])
    # A named latent at offset 0 is a target of a hard intervention, and of no other.
    assert hard["true_targets"].values[2].tolist() == [False, False, False, True, False]
    assert not soft["true_targets"].values[2].any()
    assert hard["condition"].values.tolist() == ["control", "environment_1", "environment_2"]


def test_graphs() -> None:
    def parents(kind: str, seed: int) -> np.ndarray:
        size = {"num_latents": 12, "num_genes": 60, "edge_probability": 0.3}
        data = simulated_environments(seed, graph=kind, offsets=[{}], num_cells=1, **size)
        return data["true_graph"].values

    for kind in ("growing", "multi_parent"):
        graphs = [parents(kind, seed) for seed in range(6)]
        patterns = {(graph != 0).tobytes() for graph in graphs}
        assert len(patterns) == 6
        for graph in graphs:
            assert set(np.unique(graph)) == {-1.0, 0.0, 1.0}
            number = (graph != 0).sum(0)
            assert number[0] == 0
            assert (number[1:] == 1).all() if kind == "growing" else number.max() == 3
    chain = parents("chain", 0)
    np.testing.assert_array_equal(np.abs(chain), np.eye(12, k=1))
    assert not parents("empty", 0).any()


def test_growing_network_prefers_nodes_with_many_edges() -> None:
    size = {"num_latents": 12, "num_genes": 60, "edge_probability": 0.3, "offsets": [{}], "num_cells": 1}
    most = []
    for seed in range(40):
        edges = simulated_environments(seed, graph="growing", **size)["true_graph"].values != 0
        most.append((edges.sum(0) + edges.sum(1)).max())
    # 5.7 expected; 4.2 where every earlier node is equally likely (means of 2000 graphs).
    assert np.mean(most) > 4.9


@pytest.mark.parametrize("seed", range(6))
def test_mixing_is_well_conditioned_and_every_gene_has_a_parent(seed: int) -> None:
    mixing = simulated_environments(seed, num_cells=1)["true_mixing"].values
    assert np.linalg.matrix_rank(mixing) == 2
    assert np.linalg.cond(mixing) < 6
    sparse = simulated_environments(seed, offsets=[{}], **(SMALL | {"num_cells": 1}))["true_mixing"].values
    assert np.linalg.cond(sparse) < 6
    assert (sparse != 0).any(1).all()
    assert set(np.unique(sparse)) == {-1.0, 0.0, 1.0}
    # With one parent for certain, 0.2 on each edge gives 5 * 0.2 + 0.8^5 edges a gene.
    assert 0.7 < (sparse != 0).sum(1).mean() / 1.33 < 1.3


def test_moments_of_the_two_latent_task() -> None:
    data = simulated_environments(0)
    for place, mean in enumerate([(0, 0), (3, 0), (0, 3)]):
        z = block(data, "true_z", place)
        np.testing.assert_allclose(z.mean(0), mean, atol=5 / np.sqrt(4000))
        np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.12)
        output = z @ data["true_mixing"].values.T
        assert (block(data, "expression", place) - output).std() == pytest.approx(0.5**0.5, rel=0.02)
    np.testing.assert_array_equal(data["descriptors"], [[0, 0], [3, 0], [0, 3]])
    np.testing.assert_array_equal(data["true_targets"], [[0, 0], [1, 0], [0, 1]])
    np.testing.assert_array_equal(data["true_shift"], data["descriptors"])


def test_network_decoder_is_that_of_its_weights() -> None:
    data = simulated_environments(2, decoder="mlp", noise=0.0, offsets=[{}, {1: 2.0}], **SMALL)
    hidden, output = data["true_hidden_weights"], data["true_output_weights"]
    expected = (np.maximum(data["true_c"] @ hidden, 0) * output).sum("true_hidden")
    np.testing.assert_allclose(data["expression"], expected.transpose("cell", "gene"), atol=1e-12)
    assert (hidden != 0).any("true_hidden").any("gene").all()
    # All units count: their output weights are not those of one unit.
    assert len(np.unique(output.values, axis=0)) > 2
    assert "true_mixing" not in data


def test_counts_follow_the_softmax_of_the_decoder() -> None:
    data = simulated_environments(1, likelihood="poisson", num_genes=8, library_size=1000, num_cells=2000)
    counts, library = data["expression"].values, data["library"].values
    np.testing.assert_array_equal(counts, np.round(counts))
    np.testing.assert_array_equal(library, counts.sum(1))
    assert np.median(library) == pytest.approx(1000, rel=0.05)
    assert np.log(library).std() == pytest.approx(0.3, abs=0.03)
    output = (data["true_c"] @ data["true_mixing"]).values
    share = np.exp(output) / np.exp(output).sum(1, keepdims=True)
    mean = share * library[:, None]
    # Given the total the counts are multinomial: variance l p (1 - p).
    z = (counts - mean) / np.sqrt(mean * (1 - share))
    assert abs(z.mean()) < 0.02
    assert z[mean > 5].std() == pytest.approx(1, abs=0.02)


def test_latents_without_noise_are_functions_of_their_parents() -> None:
    data = simulated_environments(0, graph="chain", latent_noise=[1.0, 0.0], offsets=[{}, {1: 0.5}], num_cells=50)
    c, weight = data["true_c"].values, data["true_graph"].values[0, 1]
    np.testing.assert_allclose(c[:50, 1], weight * c[:50, 0])
    np.testing.assert_allclose(c[50:, 1], weight * c[50:, 0] + 0.5)


def test_matrix_of_offsets() -> None:
    table = simulated_environments(1, offsets=np.array([[0.0, 2.0], [-1.0, 1.0]]), num_cells=10)
    named = simulated_environments(1, offsets=[{1: 2.0}, {0: -1.0, 1: 1.0}], num_cells=10)
    xr.testing.assert_identical(table, named)
    assert table["condition"].values.tolist() == ["environment_0", "environment_1"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_latents", 0),
        ("num_genes", 1),
        ("offsets", []),
        ("offsets", [{2: 1.0}]),
        ("offsets", [{0: np.nan}]),
        ("offsets", np.zeros((2, 3))),
        ("num_cells", 0),
        ("num_cells", [5, 5]),
        ("num_cells", 2.5),
        ("graph", "ring"),
        ("intervention", "soft"),
        ("decoder", "cubic"),
        ("likelihood", "normal"),
        ("edge_probability", 0.0),
        ("noise", -1.0),
        ("noise", np.nan),
        ("latent_noise", -1.0),
        ("library_size", 5.0),
    ],
)
def test_refuses_settings_out_of_range(setting: str, value: object) -> None:
    with pytest.raises(DataError, match=setting):
        simulated_environments(**{setting: value})


def test_says_when_no_mixing_is_well_conditioned() -> None:
    with pytest.raises(DataError, match="edge_probability: found 12, 0.5"):
        simulated_environments(num_latents=12, num_genes=12, offsets=[{}])
