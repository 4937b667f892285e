"""Pictures' files of every depth and with every kind of transparency, as a viewer shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from omniportrait.demo.main import save_photo
from omniportrait.models.faces.file import open_picture
from omniportrait.models.faces.photo import prepare_photo
from omniportrait.training.dataset.photos import open_photo
from PIL import Image

ASTRONAUT = Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB").resize((96, 64))
GREY = np.asarray(ASTRONAUT.convert("L"))


def read(path: Path) -> tuple[np.ndarray, str]:
    picture, note = open_picture(path)
    return np.asarray(picture), note


@pytest.mark.parametrize(
    ("name", "values", "note"),
    [
        ("a.png", GREY.astype(np.uint16) * 257, "16-bit, scaled from 0 to 65535"),
        ("a.tiff", GREY.astype(np.uint16) * 257, "16-bit, scaled from 0 to 65535"),
        ("a.tif", GREY.astype(">u2") * 257, "16-bit, scaled from 0 to 65535"),
        ("a.tiff", GREY.astype(np.int32), "32-bit, scaled from 0 to 255"),
        (
            "a.tiff",
            (GREY.astype(np.int64) * (2**31 - 1) // 255).astype(np.int32),
            "32-bit, scaled from 0 to 2147483647",
        ),
        ("a.tiff", GREY.astype(np.float32) / 255, "float, scaled from 0 to 1"),
        ("a.tiff", GREY.astype(np.float32), "float, scaled from 0 to 255"),
        ("a.tiff", GREY.astype(np.float32) * 257, "float, scaled from 0 to 65535"),
        ("a.png", GREY, ""),
    ],
)
def test_deep_pictures_are_scaled_by_their_range(tmp_path, capsys, caplog, name, values, note):
    path, saved = tmp_path / name, tmp_path / "saved.png"
    Image.fromarray(values).save(path)
    seen, said = read(path)
    assert said == note and np.abs(seen.astype(int) - GREY[..., None]).max() <= 1
    save_photo(path, saved)
    assert np.array_equal(np.asarray(Image.open(saved)), seen)
    assert capsys.readouterr().out == (f"{path}: {note}.\n" if note else "")
    assert np.array_equal(np.asarray(open_photo(path, 2048)), seen)
    assert [record.getMessage() for record in caplog.records] == ([f"{path}: {note}."] if note else [])


def test_a_dark_deep_picture_stays_dark(tmp_path):
    """Its own maximum is not its range: a night photograph is not brightened."""
    Image.fromarray((GREY // 8).astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert np.abs(read(tmp_path / "a.png")[0][..., 0].astype(int) - GREY // 8).max() <= 1


def test_odd_float_values(tmp_path):
    values = GREY.astype(np.float32) / 255
    values[0, :4] = np.nan, np.inf, -3, 7
    Image.fromarray(values).save(tmp_path / "a.tiff")
    seen, note = read(tmp_path / "a.tiff")
    assert note == "float, scaled from 0 to 1" and seen[0, :4, 0].tolist() == [0, 0, 0, 255]
    assert np.abs(seen[1:, :, 0].astype(int) - GREY[1:]).max() <= 1


def cut_out(mode: str) -> Image.Image:
    """Half of the astronaut, the other half transparent over magenta."""
    alpha = np.zeros((64, 96), np.uint8)
    alpha[:, :48], alpha[:, 40:48] = 255, 128
    pixels = np.array(ASTRONAUT)
    pixels[alpha == 0] = (255, 0, 255)
    picture = Image.fromarray(np.dstack([pixels, alpha]))
    if mode == "P":
        palette = Image.fromarray(pixels).quantize(64)
        palette.info["transparency"] = bytes(0 if sum(palette.getpalette()[3 * k : 3 * k + 3]) == 510 else 255
                                             for k in range(64))  # fmt: skip
        return palette
    return picture if mode == "RGBA" else picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "PNG"), ("P", "PNG")]
)
def test_the_colour_under_transparent_pixels_is_never_seen(tmp_path, mode, kind):
    path = tmp_path / f"a.{kind.lower()}"
    cut_out(mode).save(path, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    seen, _ = read(path)
    assert np.abs(seen[:, 50:].astype(int) - 128).max() <= 1
    if mode == "RGBA":
        pixels = torch.from_numpy(np.asarray(cut_out(mode)).copy()).float()[None] / 255
        by_node = prepare_photo(pixels).movedim(0, -1).numpy() * 255  # Face Reference's own way
        assert np.abs(seen - by_node).max() <= 0.51
    else:
        assert np.abs(seen[:, :39].astype(int) - np.asarray(cut_out(mode).convert("RGB"))[:, :39]).max() <= 1


def test_a_picture_stands_upright_and_what_is_none_says_so(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    ASTRONAUT.save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg")[0].shape == (96, 64, 3)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="cannot be read as a picture"):
        save_photo(tmp_path / "b.png", tmp_path / "c.png")
