"""A stranger's bytes are judged before they are decoded, and nothing but pixels goes further."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from omniportrait import environment
from omniportrait.lab.make.web import background, bodies, jpeg, portrait
from omniportrait.training.data.index import BROKEN_PICTURE, SMALL_PICTURE, BadSample
from omniportrait.training.dataset import reasons
from omniportrait.training.dataset.picture import encode, open_picture
from omniportrait.training.dataset.recipe import Picture
from PIL import Image

LIMITS = Picture()


@pytest.mark.parametrize(
    "name, reason",
    [
        ("html", BROKEN_PICTURE), ("empty", BROKEN_PICTURE), ("bomb", reasons.TOO_MANY_PIXELS),
        ("moving", reasons.MOVING), ("small", SMALL_PICTURE), ("strip", reasons.STRIP),
    ],
)  # fmt: skip
def test_what_is_refused(name, reason):
    with pytest.raises(BadSample, match=reason):
        open_picture(bodies()[name], LIMITS)


def test_half_a_file_and_other_formats_cannot_be_read():
    whole = jpeg(portrait(1))
    for content in (whole[: len(whole) // 2], b"GIF89a" + bytes(100), b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        with pytest.raises(BadSample, match=BROKEN_PICTURE):
            open_picture(content, LIMITS)


def test_a_bomb_is_not_decoded(tmp_path):
    """144 million pixels: a process that looks at it stays within 100 MB more than it needed for a portrait."""
    for name, content in (("portrait", jpeg(portrait(1))), ("bomb", bodies()["bomb"])):
        (tmp_path / name).write_bytes(content)
    code = f"""
import resource, sys
from pathlib import Path
sys.path.insert(0, {str(environment.ROOT)!r})
import environment
environment.load_pack()
from omniportrait.training.data.index import BadSample
from omniportrait.training.dataset.picture import open_picture
from omniportrait.training.dataset.recipe import Picture
open_picture(Path("portrait").read_bytes(), Picture())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_picture(Path("bomb").read_bytes(), Picture())
except BadSample as bad:
    print(bad, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sep="|")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    reason, grown = done.stdout.strip().split("|")
    assert reason == reasons.TOO_MANY_PIXELS and int(grown) < 100_000, done.stderr  # kilobytes


def test_exif_turns_the_picture_and_goes_no_further():
    picture = open_picture(bodies()["turned"], LIMITS)
    upright = portrait(10)
    corners = [each.resize((8, 8)).getpixel((0, 0)) for each in (picture, upright)]
    assert corners[0] == pytest.approx(corners[1], abs=6)
    again = Image.open(io.BytesIO(encode(picture, "JPEG")))
    assert len(again.getexif()) == 0 and b"a camera" not in encode(picture, "JPEG")
    assert b"trailing" not in encode(open_picture(bodies()["copy"], LIMITS), "JPEG")


@pytest.mark.parametrize("name", ["grey", "cmyk"])
def test_other_modes_become_rgb(name):
    assert open_picture(bodies()[name], LIMITS).mode == "RGB"


def test_large_pictures_are_reduced():
    large = open_picture(jpeg(background(1, 5000, 3000)), LIMITS)
    assert large.size == (2048, 1229)
