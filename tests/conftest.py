"""What every test is run in."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest


@pytest.fixture(autouse=True)
def own_parameter_store() -> Iterator[None]:
    """A parameter store of its own, so that no test finds what another one left."""
    with pyro.get_param_store().scope():
        yield
