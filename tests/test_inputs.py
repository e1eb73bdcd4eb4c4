"""From data to tensors and schemas, and what is refused on the way."""

from __future__ import annotations

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from embergraph.inference import svi
from embergraph.inference.copies import copy_of, float_dtype, is_factory, make_pair
from embergraph.inference.inputs import Template, as_dataset, to_inputs
from embergraph.inference.plain import schema_of
from embergraph.models.parts.errors import DataError, SchemaError
from embergraph.models.schema import Input, Schema

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 2)), RNG.normal(size=(6, 3))


def model(x, y, weight=2.0):
    w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), weight).to_event(2))
    with pyro.plate("cell", len(x), dim=-2), pyro.plate("gene", 3, dim=-1):
        pyro.sample("y_obs", dist.Normal(x @ w, 1.0), obs=y)


def test_arrays_take_the_names_of_plates():
    data = {"x": X, "y": torch.tensor(Y)}
    schema = schema_of(model, as_dataset(data), latent=["weight"], dims={"w": ("covariate", "gene")})
    assert schema.inputs == {"x": Input(("cell", "x_dim_1")), "y": Input(("cell", "gene"), observed=True)}
    assert schema.plate == "cell"
    assert schema.observed == ("y",)
    assert as_dataset(data, schema)["y"].dims == ("cell", "gene")
    tree = svi(lambda x, y: model(x, y), lambda x, y: _guide(), data, num_steps=1, progress=False).posterior(data, 2)
    assert tree["log_likelihood"]["y_obs"].dims == ("chain", "draw", "cell", "gene")
    assert tree["constant_data"]["x"].dims == ("cell", "x_dim_1")


def _guide():
    loc = pyro.param("loc", torch.zeros(2, 3))
    pyro.sample("w", dist.Normal(loc, 0.1).to_event(2))


def test_arguments_with_defaults_must_be_in_the_data_too():
    data = as_dataset({"x": X, "y": Y})
    with pytest.raises(SchemaError, match=r"weight: the model takes it, found data variables \['x', 'y'\]; wanted"):
        schema_of(model, data)
    with pytest.raises(SchemaError, match="latent: found 'wait'; wanted arguments of the model"):
        schema_of(model, data, latent=["wait"])


def test_a_dim_named_otherwise_than_its_plate_is_refused():
    data = {"x": (("cell", "covariate"), X), "y": (("cell", "spot"), Y)}
    with pytest.raises(SchemaError, match="y: found dim 'spot' along the model's plate 'gene'; wanted one name"):
        schema_of(model, as_dataset(data), latent=["weight"])


@pytest.mark.parametrize("name", ["context", "fn"])
def test_arguments_that_pyro_takes_for_itself(name):
    functions = {"context": lambda context: None, "fn": lambda fn: None}
    with pytest.raises(SchemaError, match=f"argument named '{name}', which Pyro's own wrappers take"):
        schema_of(functions[name], as_dataset({name: X}))


@pytest.mark.parametrize("name", ["sample", "chain", "draw"])
def test_dims_that_arviz_takes_for_itself(name):
    def on_plate(y):
        with pyro.plate(name, 6):
            pyro.sample("y_obs", dist.Normal(0.0, 1.0), obs=y)

    def off_plate(y):
        pyro.sample("y_obs", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=y)

    for function, dim, dims in (
        (on_plate, name, {}), (off_plate, name, {}), (off_plate, "cell", {"w": (name,)}),
    ):  # fmt: skip
        with pytest.raises(SchemaError, match=f"{name}: found it as the name of a dim, which ArviZ takes"):
            schema_of(function, as_dataset({"y": (dim, Y[:, 0])}), dims=dims)


def test_observed_inputs_are_those_that_a_site_is_scored_on():
    def several(count, value, mask, offset):
        with pyro.plate("cell", 6):
            pyro.sample("counts", dist.Poisson(offset.exp()), obs=count)
            pyro.sample("values", dist.Normal(offset, 1.0), obs=value * 2)

    data = {
        "count": ("cell", np.arange(6)), "value": ("cell", X[:, 0]), "mask": ("cell", np.ones(6, bool)),
        "offset": ("cell", X[:, 1].astype(np.float32)),
    }  # fmt: skip
    schema = schema_of(several, as_dataset(data))
    assert schema.observed == ("count",)
    assert {n: s.kind for n, s in schema.inputs.items()} == {
        "count": "int", "value": "float", "mask": "bool", "offset": "float",
    }  # fmt: skip
    assert {n: t.dtype for n, t in to_inputs(schema, as_dataset(data)).items()} == {
        "count": torch.int64, "value": torch.float64, "mask": torch.bool, "offset": torch.float32,
    }  # fmt: skip
    assert schema_of(lambda value: several(None, value, None, value), as_dataset(data)).plate == "cell"


def test_a_module_without_schema_is_run_as_a_copy_in_the_precision_of_the_data():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = torch.nn.Linear(2, 3), []

        def forward(self, x, y):
            self.calls.append(1)
            with pyro.plate("cell", len(x)):
                pyro.sample("y_obs", dist.Normal(self.linear(x), 1.0).to_event(1), obs=y)

    net = Net()
    assert schema_of(net, as_dataset({"x": X, "y": Y})).observed == ("y",)
    assert net.calls == []
    assert net.linear.weight.dtype == torch.float32


SCHEMA = Schema(
    {"x": Input(("cell", "covariate")), "code": Input(("cell",), "int"), "y": Input(("cell",), observed=True)}
)
GOOD = xr.Dataset({"x": (("cell", "covariate"), X), "code": ("cell", np.arange(6)), "y": ("cell", Y[:, 0])})


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (GOOD.drop_vars("y"), SchemaError, "y: the observed variable of the model, found data variables"),
        (GOOD.drop_vars("code"), SchemaError, "code: an input of the model"),
        (GOOD.transpose(), SchemaError, r"x: found dims \('covariate', 'cell'\); wanted \('cell', 'covariate'\)"),
        (GOOD.assign(code=GOOD["y"]), SchemaError, "code: found float values; wanted int"),
        (GOOD.assign(x=GOOD["x"] > 0), SchemaError, "x: found bool values; wanted float"),
        (GOOD.assign(y=("cell", list("abcdef"))), SchemaError, "y: found dtype .*; wanted numbers"),
        (GOOD.assign(y=GOOD["y"].where(GOOD["code"] > 1)), DataError, "y: found 2 values that are NaN or infinite"),
        (GOOD.assign(x=GOOD["x"] * np.inf), DataError, "x: found 12 values that are NaN or infinite"),
        (GOOD.isel(cell=[]), DataError, "x: found an empty variable with sizes"),
    ],
)
def test_bad_data_are_refused_by_name(data, error, message):
    with pytest.raises(error, match=message):
        to_inputs(SCHEMA, data)


def test_good_data_become_tensors():
    counts = GOOD.assign(x=GOOD["x"].round().astype(int), y=GOOD["y"].astype(np.float16))
    found = to_inputs(SCHEMA, counts)
    assert {n: t.dtype for n, t in found.items()} == {"x": torch.float64, "code": torch.int64, "y": torch.float64}
    assert set(to_inputs(SCHEMA, GOOD.drop_vars("y"), observed=False)) == {"x", "code"}
    found["x"][0] = 99.0  # a copy, not the caller's memory
    assert float(GOOD["x"][0, 0]) == X[0, 0]
    swapped = to_inputs(SCHEMA, GOOD.isel(cell=slice(None, None, -1)))["y"]
    np.testing.assert_array_equal(swapped, Y[::-1, 0])


def test_as_dataset_says_what_it_wants():
    for wrong in (X, None, [X]):
        with pytest.raises(DataError, match="wanted an xarray Dataset or a mapping"):
            as_dataset(wrong)
    with pytest.raises(DataError, match="variables that do not fit together"):
        as_dataset({"x": ("cell", X[:, 0]), "y": ("cell", Y[:3, 0])})
    assert as_dataset({"n": 3, "x": X})["n"].dims == ()
    assert as_dataset(GOOD) is GOOD


def test_precision_of_the_data():
    half, single, double = (torch.zeros(2, dtype=d) for d in (torch.int64, torch.float32, torch.float64))
    assert float_dtype({"a": half, "b": single}) == torch.float32
    assert float_dtype({"a": single, "b": double}) == torch.float64
    assert float_dtype({"a": half}) == torch.get_default_dtype()


def test_templates_hold_names_and_no_data():
    data = GOOD.assign_coords(cell=list("abcdef"), covariate=["age", "dose"]).assign_attrs(standardized="gene", n=None)
    data = data.assign(scale=("gene", np.array([1.0, 2.0])), label=("cell", list("uvwxyz")))
    data = data.assign_coords(gene=["A", "B"])
    template = Template.of(SCHEMA, data)
    assert template.variables["x"] == (("cell", "covariate"), (6, 2), "float64")
    assert template.coords == {"covariate": ["age", "dose"], "gene": ["A", "B"]}
    assert template.extras == {"scale": (("gene",), [1.0, 2.0])}
    assert template.attrs == {"standardized": "gene"}
    assert Template.from_dict(json.loads(json.dumps(template.to_dict()))) == template
    zeros = template.zeros(SCHEMA)
    assert {n: (tuple(t.shape), t.dtype) for n, t in zeros.items()} == {
        "x": ((6, 2), torch.float64), "code": ((6,), torch.int64), "y": ((6,), torch.float64),
    }  # fmt: skip
    assert not any(t.any() for t in zeros.values())
    extras = template.extra_dataset()
    assert list(extras["gene"].values) == ["A", "B"]
    assert extras.attrs == {"standardized": "gene"}


def test_factories():
    class Guide(torch.nn.Module):
        def forward(self, model):
            """One argument of this name, and still a guide."""

    assert is_factory(Guide)
    assert is_factory(lambda model: None)
    assert not is_factory(Guide())
    assert not is_factory(lambda y: None)
    assert not is_factory(lambda model, y: None)


def test_pairs_are_copied_together():
    shared = torch.nn.Linear(1, 1)

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = shared

    a, b, _ = make_pair(Part(), Part(), {"x": torch.zeros(1, dtype=torch.double)})
    assert a.shared is b.shared is not shared
    assert a.shared.weight.dtype == torch.float64
    part = Part()
    part.graph = (shared.weight * 2).sum()
    with pytest.raises(SchemaError, match=r"Part: cannot be copied .*pass a guide class"):
        copy_of(part)
