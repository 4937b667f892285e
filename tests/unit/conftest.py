"""Detectors that find what a test says, in place of the one that Face Reference would choose."""

from __future__ import annotations

import pytest
from omniportrait.models.faces import build as build_module
from omniportrait.models.faces.detector import Backend
from omniportrait.models.faces.face import DetectedFace
from told_faces import Bright, Told


@pytest.fixture
def told(monkeypatch):
    """told(*faces, parser=None): from here on these faces are found."""

    def tell(*faces: DetectedFace, parser=None) -> None:
        monkeypatch.setattr(build_module, "choose_backend", lambda name, folders: Backend(Told(*faces), parser))

    return tell


@pytest.fixture
def bright(monkeypatch):
    def tell(*trusts: float) -> None:
        monkeypatch.setattr(build_module, "choose_backend", lambda name, folders: Backend(Bright(trusts), None))

    return tell
