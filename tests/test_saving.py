"""Fits on disk: loaded bit by bit in a fresh process, and refused when they are not what they should be."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

from embergraph.inference import Fit, mcmc, svi
from embergraph.models.parts.errors import LoadError, SchemaError

DEFINITIONS = '''
import numpy as np, pyro, pyro.distributions as dist, torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

DATA = {"y": (("cell", "gene"), np.random.default_rng(0).gamma(3.0, size=(9, 2)))}

def function(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    with pyro.plate("cell", len(y), dim=-1):
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("y_obs", dist.Exponential((rate * z).unsqueeze(-1).expand(*z.shape, 2)).to_event(1), obs=y)

def hand_guide(y):
    shape = pyro.param("shape", torch.tensor(2.0), constraint=constraints.positive)
    middle = pyro.param("middle", torch.tensor(0.5), constraint=constraints.interval(0.0, 2.0))
    pyro.sample("rate", dist.Gamma(shape, shape / middle))
    with pyro.plate("cell", len(y), dim=-1):
        pyro.sample("z", dist.LogNormal(pyro.param("loc", torch.zeros(len(y)), event_dim=0), 0.3))

class Module(torch.nn.Module):
    """A model with a buffer and a fitted decoder."""
    def __init__(self, width=1.0):
        super().__init__()
        self.register_buffer("width", torch.tensor(width))
        self.decoder = torch.nn.Linear(1, 2)
    def forward(self, y):
        with pyro.plate("cell", len(y), dim=-1):
            z = pyro.sample("z", dist.Normal(0 * self.width, self.width))
            rate = self.decoder(z.unsqueeze(-1)).exp()
            pyro.sample("y_obs", dist.Exponential(rate).to_event(1), obs=y)

class Guide(PyroModule):
    """An encoder that is a plain module, and a constrained parameter."""
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        self.scale = PyroParam(torch.tensor(0.5), constraint=constraints.positive)
    def forward(self, y):
        with pyro.plate("cell", len(y), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(y).squeeze(-1), self.scale))

PAIRS = {
    "auto": (function, None),
    "factory": (function, lambda model: AutoNormal(model)),
    "hand": (function, hand_guide),
    "module": (Module(2.0), Guide()),
    "mcmc": (function, None),
}
FRESH = {**PAIRS, "module": (Module(), Guide())}

def numbers(fit):
    tree = fit.posterior(DATA, 7, seed=3)
    found = {f"{g}/{n}": v.values for g in tree.children for n, v in tree[g].data_vars.items()}
    found |= {f"global/{n}": v.detach().numpy() for n, v in fit.global_draws(5).items()}
    found |= {"density": fit.log_density(DATA, 5).values, "predict": fit.predict(DATA, 3)["y_obs"].values}
    return found
'''

LOADS = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import definitions as d
from embergraph.inference import Fit
for name, (model, guide) in d.FRESH.items():
    fit = Fit.load(sys.argv[1] + "/" + name, model, guide)
    np.savez(sys.argv[1] + "/" + name + "/fresh.npz", **d.numbers(fit))
    if name != "mcmc":
        fit = fit.resume(d.DATA, 3, progress=False)
        np.savez(sys.argv[1] + "/" + name + "/resumed.npz", fit.history.values)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Definitions as a module of their own, a fit of every kind, and the folder that holds them."""
    folder = tmp_path_factory.mktemp("fits")
    (folder / "definitions.py").write_text(DEFINITIONS)
    spec = importlib.util.spec_from_file_location("definitions", folder / "definitions.py")
    d = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(d)
    options = {"num_steps": 12, "learning_rate": 0.05, "progress": False, "dims": {"y_obs": ("gene",)}}
    fits = {}
    for name, (model, guide) in d.PAIRS.items():
        if name == "mcmc":
            fits[name] = mcmc(model, d.DATA, num_warmup=10, num_draws=6, num_chains=2, max_tree_depth=3, progress=False)
        else:
            fits[name] = svi(model, guide or AutoNormal, d.DATA, **options)
        assert fits[name].save(folder / name) == folder / name
    return folder, d, fits


def test_every_kind_of_fit_loads_in_a_fresh_process(saved):
    folder, d, fits = saved
    (folder / "loads.py").write_text(LOADS)
    done = subprocess.run(
        [sys.executable, folder / "loads.py", folder], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    for name, fit in fits.items():
        wanted = d.numbers(fit)
        with np.load(folder / name / "fresh.npz") as found:
            assert set(found) == set(wanted)
            for key, value in wanted.items():
                np.testing.assert_array_equal(found[key], value, err_msg=f"{name} {key}")
        if name != "mcmc":
            resumed = fit.resume(d.DATA, 3, progress=False).history.values
            with np.load(folder / name / "resumed.npz") as found:
                np.testing.assert_array_equal(found["arr_0"], resumed)


def test_the_files_hold_no_data_and_no_code(saved):
    folder, d, _ = saved
    assert sorted(p.name for p in (folder / "hand").glob("*.[pj][ts]*")) == ["fit.json", "state.pt"]
    about = json.loads((folder / "hand" / "fit.json").read_text())
    assert about["template"]["variables"] == {"y": [["cell", "gene"], [9, 2], "float64"]}
    assert about["versions"].keys() == {"embergraph", "torch", "pyro-ppl", "xarray", "arviz"}
    tensors = torch.load(folder / "hand" / "state.pt", weights_only=True)
    y = torch.as_tensor(d.DATA["y"][1])

    def walk(thing):
        for value in thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list | tuple) else ():
            yield from walk(value)
        if isinstance(thing, torch.Tensor):
            yield thing

    assert not any(t.shape == y.shape and torch.equal(t, y) for t in walk(tensors))
    assert tensors["parameters"].keys() == {"shape", "middle", "loc"}


def test_settings_history_and_template_survive(saved):
    folder, d, fits = saved
    for name, fit in fits.items():
        read = Fit.load(folder / name, *d.FRESH[name])
        np.testing.assert_array_equal(read.history, fit.history)
        assert json.loads(json.dumps(fit.settings)) == read.settings
        assert read.template == fit.template
        assert read.schema == fit.schema
        assert read.summary() == fit.summary()


def other_function(y):
    pyro.sample("rate", dist.Gamma(2.0, 2.0))


def test_another_model_or_guide_is_refused(saved):
    folder, d, _ = saved

    def function(y):  # the right name, other sites
        pyro.sample("rates", dist.Gamma(2.0, 2.0))

    def hand_guide(y):
        pyro.sample("rate", dist.Gamma(pyro.param("shape", torch.ones(())), 1.0))

    class Module(torch.nn.Module):
        def forward(self, y):
            return d.Module()(y)

    refused = {
        ("auto", (other_function,)): "model: found 'other_function'; wanted 'function'",
        ("auto", (function,)): "parameters: found|guide: AutoNormal does not fit",
        ("auto", (d.function, AutoDiagonalNormal)): "guide: found 'AutoDiagonalNormal'; wanted 'AutoNormal'",
        ("auto", (d.function, lambda model: AutoDiagonalNormal(model))): "guide: found 'AutoDiagonalNormal'",
        ("hand", (d.function, hand_guide)): "parameters: found .*another model or guide",
        ("hand", (d.function, other_function)): "guide: found 'other_function'; wanted 'hand_guide'",
        ("mcmc", (function,)): "model: found latent sites",
        ("module", (Module(), d.Guide())): "model: Module does not fit the saved numbers|cannot be restored",
        ("auto", ()): "model: the fit was made with 'function', which cannot be rebuilt from a file; pass model=",
        ("hand", (d.function,)): "guide: the fit was made with 'hand_guide', which cannot be rebuilt",
    }
    for (name, given), message in refused.items():
        with pytest.raises(LoadError, match=message):
            Fit.load(folder / name, *given)


def test_other_formats_and_damaged_files_are_refused(saved, tmp_path):
    folder, d, _ = saved
    about = json.loads((folder / "hand" / "fit.json").read_text())
    state = (folder / "hand" / "state.pt").read_bytes()

    def load(text, content=state):
        (tmp_path / "fit.json").write_text(text)
        (tmp_path / "state.pt").write_bytes(content)
        return Fit.load(tmp_path, d.function, d.hand_guide)

    load(json.dumps(about))
    with pytest.raises(LoadError, match="found format 99; wanted 1"):
        load(json.dumps({**about, "format": 99}))
    for kind in ("Path", "NOTMAD", None, ["Fit"]):
        with pytest.raises(LoadError):
            load(json.dumps({**about, "kind": kind}))
    for text in ("", "[]", "{", "{}", json.dumps({"format": 1, "kind": "Fit"})):
        with pytest.raises(LoadError):
            load(text)
    for key in set(about) - {"versions"}:
        with pytest.raises(LoadError):
            load(json.dumps({k: v for k, v in about.items() if k != key}))
    for content in (b"", state[: len(state) // 2]):
        with pytest.raises(LoadError, match="cannot be read as tensors"):
            load(json.dumps(about), content)
    with pytest.raises(LoadError, match="not a saved fit"):
        Fit.load(tmp_path / "nowhere")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(saved, tmp_path):
    folder, d, _ = saved
    about = (folder / "hand" / "fit.json").read_text()
    fired = tmp_path / "fired"
    (tmp_path / "fit.json").write_text(about)
    torch.save({"model": {}, "guide": {}, "parameters": {"shape": Bomb(fired)}, "training": {}}, tmp_path / "state.pt")
    with pytest.raises(LoadError, match="cannot be read as tensors"):
        Fit.load(tmp_path, d.function, d.hand_guide)
    assert not fired.exists()
    (tmp_path / "state.pt").write_bytes((folder / "hand" / "state.pt").read_bytes())
    evil = json.loads(about)
    for name in ("os.system", "antigravity", "embergraph.inference.svi", "Path"):
        evil["model"] = {"name": name, "settings": {"touch": str(fired)}}
        evil["guide"] = {"name": name, "settings": None}
        (tmp_path / "fit.json").write_text(json.dumps(evil))
        with pytest.raises(LoadError, match="cannot be rebuilt from a file"):
            Fit.load(tmp_path)
    assert "antigravity" not in sys.modules
    assert not fired.exists()


def test_a_fit_replaces_an_earlier_one_whole(saved, tmp_path):
    _, d, fits = saved
    fits["auto"].save(tmp_path)
    fits["hand"].save(tmp_path)
    assert Fit.load(tmp_path, d.function, d.hand_guide).guide is d.hand_guide
    broken = Fit.load(tmp_path, d.function, d.hand_guide)
    broken.settings["mine"] = object()
    with pytest.raises(SchemaError, match="settings: found object"):
        broken.save(tmp_path)
    Fit.load(tmp_path, d.function, d.hand_guide)  # refused before anything was written
