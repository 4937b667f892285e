"""The laboratory runs on the real ComfyUI; its own tests do too."""

from __future__ import annotations

import pytest
from omniportrait import environment

environment.use_comfyui()

from omniportrait.lab.testbed import small


@pytest.fixture(scope="session")
def vae():
    return small.vae()


@pytest.fixture(autouse=True)
def no_leftovers():
    """Every test starts with an empty reference cache."""
    from omniportrait.sampling import reference

    reference.forget_all()
    yield
    reference.forget_all()
