"""`run.py demo` from its options to the saved pictures: as it comes, on a server that it starts and stops; with other
options on the server of all these tests."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import numpy
import pytest
import standin_files
import torch
from conftest import ONE_THREAD, STANDINS
from omniportrait import environment, run
from omniportrait.demo import main
from omniportrait.lab.measures.text import TextMeasure
from omniportrait.models.faces.embedder import find_landmarks
from PIL import Image

ASKED = {"subject": "woman", "expression": "smiling", "garment": "t-shirt", "colour": "red", "background": "forest"}
"""What the workflow's prompt says. Expressions are too fine for the demo's model to be relied on."""
PICTURES = [
    "comparison.png", "face_crop.png", "face_mask.png", "guidance_trace.png", "portrait.png",
    "portrait_without_guidance.png",
]  # fmt: skip
GAP = 8
"""White between the pictures of the comparison."""


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """Runs `run.py demo` with these arguments, in a folder of its own; ComfyUI also knows the narrow stand-ins."""
    monkeypatch.setenv(*ONE_THREAD)
    monkeypatch.setattr(main, "BASE", tmp_path / "base")
    monkeypatch.setattr(main, "CUSTOM_NODES", main.CUSTOM_NODES | {"standin-models": STANDINS})

    def start(*arguments: str) -> tuple[int, list[Path]]:
        options, rest = run.parse(["demo", "--output", str(tmp_path / "output"), *arguments])
        assert not rest
        status = main.main(options, environment.find_comfyui())
        return status, sorted((tmp_path / "output").glob("*/*"))

    return start


@pytest.fixture
def demo_here(demo, server, monkeypatch):
    """`demo` without a start of its own: it finds the server of all these tests running."""
    photo = server.base / "input" / main.REFERENCE
    before = photo.read_bytes()
    monkeypatch.setattr(main, "BASE", server.base)
    monkeypatch.setattr(main, "device_arguments", lambda _: server.arguments)  # as it was found when that began
    monkeypatch.setattr(main, "ComfyServer", lambda *_, **__: contextlib.nullcontext(server))
    yield demo
    photo.write_bytes(before)


@pytest.mark.slow
def test_demo_as_it_comes(demo, capsys):
    """With all its steps, so that the portrait can be judged: a face is there, and what the prompt asks for."""
    status, saved = demo()
    assert status == 0
    assert [path.name for path in saved] == PICTURES
    comparison, *_, portrait, unguided = (numpy.asarray(Image.open(path)) for path in saved)
    assert portrait.shape == unguided.shape == (256, 256, 3) and min(portrait.std(), unguided.std()) > 2
    left, *others, middle, right = (
        comparison[:, place : place + 256] for place in range(0, 5 * (256 + GAP), 256 + GAP)
    )
    assert comparison.shape == (256, 5 * 256 + 4 * GAP, 3)
    crop = Image.open(saved[1]).resize((256, 256), Image.Resampling.LANCZOS)
    for shown, meant in ((left, crop), (middle, unguided), (right, portrait)):
        assert abs(shown.astype(int) - numpy.asarray(meant)).max() <= 2  # the stitching rounds
    for one, more in itertools.pairwise((*others, middle, right)):
        assert abs(more.astype(int) - one).max() > 8, "one of the portraits' parts did nothing"
    told = capsys.readouterr().out
    assert "Saved in" in told and "comparison.png first" in told
    picture = torch.from_numpy(portrait.copy()).float().movedim(2, 0)[None] / 255
    shown = {head: bool(right) for head, right in TextMeasure.load().agreement(picture, [ASKED]).items()}
    shown.pop("expression")
    assert find_landmarks(picture[0]) is not None and all(shown.values()), shown


@pytest.mark.parametrize(("family", "with_encoder"), [("sdxl", True), ("sd15", False)])
def test_demo_on_own_files(demo_here, server, tmp_path, family, with_encoder):
    checkpoint, encoder = tmp_path / f"my {family}.safetensors", tmp_path / f"encoder {family}.safetensors"
    standin = {"sd15": "v1-5-pruned-emaonly-fp16.safetensors", "sdxl": "sd_xl_base_1.0.safetensors"}[family]
    checkpoint.hardlink_to(server.base / "models" / "checkpoints" / standin)
    standin_files.pivot_encoder(encoder)
    own = ("--checkpoint", str(checkpoint), "--photo", str(main.second_photo()))
    if with_encoder:
        own += ("--pivot-encoder", str(encoder))
    prompt = ("--prompt", "a man on the beach", "--seed", "5", "--steps", "2", "--size", "128x192")
    status, saved = demo_here(*own, *prompt)
    assert status == 0
    assert [path.name for path in saved] == PICTURES
    assert Image.open(saved[-1]).size == (128, 192)
    assert Image.open(saved[0]).size == (192 + 4 * 128 + 4 * GAP, 192), "a square crop of the portrait's height"


def test_demo_paints_a_person_into_another_picture(demo_here, server, tmp_path, monkeypatch, capsys):
    """With nets of random values: what is saved, and that both samplers began with one noise."""
    nets, style = tmp_path / main.DEMO_NETS.name, server.base / "input" / main.STYLE
    with pytest.raises(SystemExit, match="needs IC-Portrait's nets"):
        demo_here("--ic")
    standin_files.ic_portrait(nets)
    monkeypatch.setattr(main, "DEMO_NETS", nets)
    status, saved = demo_here("--ic", "--steps", "2", "--seed", "2")
    assert status == 0 and [path.name for path in saved] == ["comparison.png", "flow.png", "passes.png", "portrait.png"]
    comparison, flow, passes, portrait = (numpy.asarray(Image.open(path)).astype(int) for path in saved)
    assert flow.shape == (256, 4 * 256, 3) and passes.shape == (256, 5 * 256, 3)
    without, painted = comparison[:, -512 - GAP : -256 - GAP], comparison[:, -256:]
    assert abs(painted - passes[:, -256:]).max() <= 2 < abs(painted - without).max()
    whole = numpy.asarray(Image.open(style).convert("RGB")).astype(int)
    changed = abs(portrait - whole).max(2) > 2
    assert portrait.shape == whole.shape and changed.any() and not changed[-1].any(), "the crop alone is new"
    assert "painted with them" in capsys.readouterr().out


def test_demo_fails_with_one_sentence(demo_here, capsys):
    status, saved = demo_here("--subject", "zebra")
    assert status == 1 and not saved
    told = capsys.readouterr().err.strip()
    assert told.startswith('OmniPortraitPivotConditioning: The text does not hold the subject "zebra"')
    assert "\n" not in told
