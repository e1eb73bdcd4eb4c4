"""Files made to do harm: nothing in them is executed or followed, all of them are refused by one kind of error."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import sys
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from hostile import DATA, Command, model
from pyro.infer.autoguide import AutoNormal

import embergraph as eg
from embergraph.datasets import simulated_environments
from embergraph.inference import Fit, mcmc, svi
from embergraph.models import EnvironmentVAE
from embergraph.models.parts.errors import LoadError
from embergraph.models.parts.priors import Prior


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A fit of a function, one of a sampler, and one of a model of the suite, each in its folder."""
    folder = tmp_path_factory.mktemp("fits")
    svi(model, AutoNormal, DATA, num_steps=3, progress=False).save(folder / "svi")
    mcmc(model, DATA, num_warmup=5, num_draws=4, progress=False).save(folder / "mcmc")
    data = simulated_environments(0, num_latents=2, num_genes=8, num_cells=30)
    eg.fit(EnvironmentVAE.for_data(data, 2), data, routine="em", num_steps=2, progress=False).save(folder / "suite")
    return folder


@pytest.fixture
def of(saved, tmp_path):
    """A function that copies a fit, so that it can be damaged."""

    def copied(name):
        shutil.copytree(saved / name, tmp_path / name)
        return tmp_path / name

    return copied


def load(folder):
    with_model = {} if folder.name == "suite" else {"model": model}
    return eg.load(folder, **with_model)


def refused(folder, match=None):
    with pytest.raises(LoadError, match=match):
        load(folder)


def edit(folder, change):
    """Change what the JSON says."""
    about = json.loads((folder / "fit.json").read_text())
    change(about)
    (folder / "fit.json").write_text(json.dumps(about))


def edit_numbers(folder, change):
    tensors = torch.load(folder / "state.pt", weights_only=True)
    change(tensors)
    torch.save(tensors, folder / "state.pt")


@pytest.mark.parametrize("name", ["svi", "mcmc", "suite"])
def test_what_is_not_damaged_loads(of, name):
    folder = of(name)
    edit(folder, lambda about: None)
    edit_numbers(folder, lambda tensors: None)
    assert isinstance(load(folder), Fit)


@pytest.mark.parametrize("how", ["system", "eval", "path", "load"])
@pytest.mark.parametrize("place", ["whole", "inside", "plain pickle"])
def test_code_in_the_numbers_is_not_run(of, tmp_path, how, place):
    folder, fired = of("svi"), tmp_path / "fired"
    command = Command(fired, how)
    if place == "whole":
        torch.save(command, folder / "state.pt")
    elif place == "plain pickle":
        (folder / "state.pt").write_bytes(pickle.dumps(command))
    else:
        edit_numbers(folder, lambda tensors: tensors["training"].update(rng=[command]))
    refused(folder, "cannot be read as tensors")
    assert not fired.exists()


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "antigravity", "../../evil", "Fit", "Prior", "eval"])
def test_names_are_looked_up_never_imported(of, name):
    modules = set(sys.modules)
    for role in ("model", "guide"):
        folder = of("suite")
        edit(folder, lambda about, role=role: about[role].update(name=name))
        refused(folder)
        shutil.rmtree(folder)
    folder = of("suite")
    edit(folder, lambda about: about.update(kind=name))
    if name != "Fit":
        refused(folder, "wanted a class of fits")
    shutil.rmtree(folder)
    with pytest.raises(LoadError, match="prior: found"):
        Prior.from_settings({"distribution": name, "parameters": {}})
    assert not {"antigravity"} & (set(sys.modules) - modules)


def settings_with(settings, value):
    """The settings with a value in the place of each one in them, one at a time."""
    for key, old in settings.items():
        if isinstance(old, dict):
            for changed in settings_with(old, value):
                yield {**settings, key: changed}
        else:
            yield {**settings, key: value}


@pytest.mark.parametrize("value", [10**15, "os.system", {"kind": "os.system"}])
def test_no_setting_of_a_model_does_harm(of, value):
    """It loads, where the setting does not matter, or is refused."""
    folder = of("suite")
    text = (folder / "fit.json").read_text()
    for role in ("model", "guide"):
        for changed in settings_with(json.loads(text)[role]["settings"], value):
            edit(folder, lambda about, role=role, changed=changed: about[role].update(settings=changed))
            with suppress(LoadError):
                load(folder)
            (folder / "fit.json").write_text(text)


@pytest.mark.parametrize("name", ["svi", "mcmc", "suite"])
@pytest.mark.parametrize("value", [None, [], {}, "text", 7, [[["a"]]], {"a": {"b": None}}])
def test_no_part_of_the_json_does_harm(of, name, value):
    folder = of(name)
    about = json.loads((folder / "fit.json").read_text())
    for key in about:
        (folder / "fit.json").write_text(json.dumps({**about, key: value}))
        with suppress(LoadError):
            load(folder)


@pytest.mark.parametrize(
    "sizes",
    [[10**15], [10**30], [-3], ["3"], [2.5], [2**62, 4], None],
    ids=repr,
)
def test_sizes_that_no_memory_holds(of, sizes):
    folder = of("svi")
    edit(folder, lambda about: about["template"]["variables"]["y"].__setitem__(1, sizes))
    refused(folder)


@pytest.mark.parametrize("dtype", ["object", "O", "U4000000000", "V1000000000000", "M8[ns]", "os.system", None, "c16"])
def test_kinds_of_data_that_are_none(of, dtype):
    folder = of("svi")
    edit(folder, lambda about: about["template"]["variables"]["y"].__setitem__(2, dtype))
    refused(folder)


def test_deep_json_and_long_numbers(of):
    folder = of("svi")
    for text in (
        "[" * 10**6,
        '{"a":' * 10**5,
        '{"format": ' + "9" * 10**5 + "}",
        "[" * 10**5 + "]" * 10**5,
        "\x00" * 99,
    ):
        (folder / "fit.json").write_text(text)
        refused(folder, "not a saved fit")
    (folder / "fit.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "not a saved fit")


def test_archives_that_are_cut_or_name_other_files(of, tmp_path):
    folder = of("svi")
    whole = (folder / "state.pt").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.99):
        (folder / "state.pt").write_bytes(whole[: int(share * len(whole))])
        refused(folder, "cannot be read as tensors")
    (folder / "state.pt").write_bytes(b"PK\x03\x04" + bytes(1000))
    refused(folder, "cannot be read as tensors")
    with zipfile.ZipFile(folder / "state.pt", "w") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr("state/data.pkl", pickle.dumps({}))
    refused(folder)
    assert not list(tmp_path.parent.rglob("escaped"))


def test_pipes_and_devices_are_not_read(of):
    for name in ("fit.json", "state.pt"):
        folder = of("svi")
        (folder / name).unlink()
        os.symlink("/dev/zero", folder / name)
        refused(folder, "wanted a plain file")
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(folder, "wanted a plain file")  # and does not wait for a writer
        (folder / name).unlink()
        os.symlink(folder / name, folder / name)  # a ring
        refused(folder)
        shutil.rmtree(folder)


def test_saving_into_a_folder_with_links_spares_what_they_lead_to(saved, tmp_path):
    target, folder = tmp_path / "precious", tmp_path / "fit"
    target.write_text("mine")
    folder.mkdir()
    for name in ("fit.json", "state.pt"):
        os.symlink(target, folder / name)
    fit = eg.load(saved / "svi", model)
    fit.save(folder)
    assert target.read_text() == "mine"
    os.symlink(target, tmp_path / "c.part")
    svi(model, AutoNormal, DATA, num_steps=3, progress=False, checkpoint=tmp_path / "c", checkpoint_every=2)
    assert target.read_text() == "mine"


def tensors_of(saved):
    """Every tensor that a fit is made of, with the mapping and the name that it is found by."""
    for part in ("model", "guide", "parameters", "draws"):
        for name in saved.get(part, {}):
            yield saved[part], name


SPOILED = {
    "shape": lambda tensor: torch.zeros(tensor.numel() + 1),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "another kind": lambda tensor: tensor.double() if tensor.dtype in (torch.bool, torch.long) else tensor > 0,
    "number": lambda tensor: 1.0,
    "text": lambda tensor: "os.system",
    "missing": None,
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["svi", "mcmc", "suite"])
def test_tensors_of_other_shapes_and_kinds(of, name, how):
    folder = of(name)
    whole = torch.load(folder / "state.pt", weights_only=True)
    places = [(part, key) for part in ("model", "guide", "parameters", "draws") for key in whole.get(part, {})]
    assert places
    for part, key in places:
        tensors = copy.deepcopy(whole)
        if SPOILED[how] is None:
            del tensors[part][key]
        else:
            tensors[part][key] = SPOILED[how](tensors[part][key])
        torch.save(tensors, folder / "state.pt")
        refused(folder)


@pytest.mark.parametrize("name", ["svi", "mcmc"])
def test_nan_is_refused(of, name):
    folder = of(name)

    def spoil(tensors):
        for mapping, key in tensors_of(tensors):
            if mapping[key].is_floating_point() and key != "prototype":
                mapping[key] = torch.full_like(mapping[key], np.nan)

    edit_numbers(folder, spoil)
    refused(folder, "found NaN")
