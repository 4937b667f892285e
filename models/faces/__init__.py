"""Face detection, choice, cropping and parsing behind one small interface."""

from .reference import FaceReference

__all__ = ["FaceReference"]
