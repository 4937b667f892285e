"""Each column on a small random model of the published architecture, against the formula, with the network refused."""

from __future__ import annotations

import json
import socket
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omniportrait.evaluation.cells import Cell
from omniportrait.evaluation.columns.clip import GOOD_AND_BAD, ClipColumns, Iqa
from omniportrait.evaluation.columns.column import NoFile
from omniportrait.evaluation.columns.faces import BuiltInFaces, arcface, facenet
from omniportrait.evaluation.columns.frechet import Frechet, pixels
from omniportrait.evaluation.portrait import Album
from omniportrait.evaluation.protocol import Person, Prompt
from omniportrait.models.faces.face import DetectedFace
from PIL import Image

FIVE = ((90.0, 90.0), (160.0, 90.0), (125.0, 130.0), (95.0, 170.0), (155.0, 170.0))
FACE = DetectedFace((60.0, 50.0, 190.0, 220.0), FIVE, 1.0)
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a column asked the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def people(tmp_path) -> list[Person]:
    """Noise under names; `faceless` has a dark picture, in which the detector below sees nobody."""
    found = []
    for name in ("a", "b", "faceless"):
        values = np.random.default_rng(ord(name[0])).integers(120, 255, (256, 256, 3)) // (1 if len(name) == 1 else 9)
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / f"{name}.png")
        found.append(Person(name, tmp_path / f"{name}.png", "woman"))
    return found


@pytest.fixture
def album() -> Album:
    return Album(SimpleNamespace(detect=lambda picture: [FACE] if float(picture.mean()) > 0.3 else []))


def cell_of(person: Person, text: str = "a {subject} at sea") -> Cell:
    return Cell(SimpleNamespace(name="m"), person, Prompt("00", text), 0, 0)


@pytest.fixture
def tiny_clip(tmp_path):
    """Writes an open_clip model into a column's folder and returns it."""
    import open_clip

    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")

    def make(folder: str) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = open_clip.create_model("tiny-clip").eval()
        (tmp_path / "weights" / folder).mkdir(parents=True)
        torch.save(model.state_dict(), tmp_path / "weights" / folder / "tiny-clip.pt")
        return model

    return make


def unit(vector: torch.Tensor) -> np.ndarray:
    values = vector.detach().double().numpy()[0]
    return values / np.linalg.norm(values)


def seen_by(model: torch.nn.Module, image: Image.Image) -> np.ndarray:
    import open_clip

    prepared = open_clip.image_transform(32, is_train=False)(image)
    return unit(model.encode_image(prepared[None]))


def read_by(model: torch.nn.Module, text: str) -> np.ndarray:
    import open_clip

    return unit(model.encode_text(open_clip.tokenize([text])))


def test_clip_t_and_clip_i(tmp_path, people, album, tiny_clip):
    model, (own, other, nobody) = tiny_clip("clip"), people
    column = ClipColumns(tmp_path / "weights")
    row = column(cell_of(own), album.open(other.photo), album)
    picture = Image.open(other.photo)
    assert row["clip_t"] == pytest.approx(seen_by(model, picture) @ read_by(model, "a woman at sea"), abs=1e-5)
    crops = [album.open(person.photo).crop for person in (own, other)]
    assert row["clip_i"] == pytest.approx(seen_by(model, crops[0]) @ seen_by(model, crops[1]), abs=1e-5)
    assert abs(row["clip_t"]) < 1 > row["clip_i"] != row["clip_t"]
    assert crops[0].size == (256, 256)  # a face of 170 pixels with its margin
    blank = column(cell_of(own), album.open(nobody.photo), album)
    assert blank["clip_i"] is None and blank["clip_t"] is not None


def test_iqa(tmp_path, people, album, tiny_clip):
    model = tiny_clip("iqa")
    row = Iqa(tmp_path / "weights")(cell_of(people[0]), album.open(people[1].photo), album)
    picture = seen_by(model, Image.open(people[1].photo))
    good, bad = (np.exp(model.logit_scale.exp().item() * (read_by(model, text) @ picture)) for text in GOOD_AND_BAD)
    assert row["iqa"] == pytest.approx(good / (good + bad), abs=1e-4)


def test_blip(tmp_path, people, album, tiny_clip):
    import transformers
    from omniportrait.evaluation.columns.blip import Blip
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    model = tiny_clip("blip_text")
    folder = tmp_path / "weights" / "blip"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "[DEC]", "[ENC]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    pictures = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.BlipProcessor(pictures, tokenizer)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tokens = {"vocab_size": len(words), "bos_token_id": 31, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = size | tokens | {"encoder_hidden_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = transformers.BlipConfig(text_config=text, vision_config=size | {"image_size": 32, "patch_size": 8})
        captioner = transformers.BlipForConditionalGeneration(config)
    captioner.save_pretrained(folder)
    processor.save_pretrained(folder)
    column, portrait = Blip(tmp_path / "weights"), album.open(people[1].photo)
    caption = column.caption(portrait)
    assert caption and caption == column.caption(portrait)
    prompts = [read_by(model, each("a woman at sea").replace("a a ", "a ").replace("the a ", "a "))
               for each in OPENAI_IMAGENET_TEMPLATES]  # fmt: skip
    mean = np.mean(prompts, 0)
    expected = read_by(model, caption) @ (mean / np.linalg.norm(mean))
    row = column(cell_of(people[0]), portrait, album)
    assert len(prompts) == 80 and row["blip"] == pytest.approx(expected, abs=1e-5)


def test_fid_and_kid(tmp_path, monkeypatch):
    """By a small feature extractor in the place of Inception; Inception itself is in the next test."""
    from omniportrait.evaluation.columns import frechet

    def network(pictures):
        return (pictures.double().flatten(2)[:, :, ::9973].flatten(1)[:, :6] / 255,)

    monkeypatch.setattr(frechet, "inception", lambda file: network)
    (tmp_path / "weights" / "inception").mkdir(parents=True)
    (tmp_path / "weights" / "inception" / "small.pth").touch()
    files = {}
    for name, low in (("real", 0), ("made", 60)):
        (tmp_path / name).mkdir()
        for number in range(12):
            values = np.random.default_rng(low + number).integers(low, 200, (40, 50, 3)).astype(np.uint8)
            Image.fromarray(values).save(tmp_path / name / f"{number:02d}.png")
        files[name] = sorted((tmp_path / name).iterdir())
    column = Frechet(tmp_path / "weights", tmp_path / "real")
    x, y = (np.stack([network(pixels(file)[None])[0][0].numpy() for file in files[name]]) for name in files)
    a, b = np.cov(y, rowvar=False), np.cov(x, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T  # the symmetric form of the trace of the root of a b
    between = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    fid = ((y.mean(0) - x.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * between
    kernel = [(u @ v.T / 6 + 1) ** 3 for u, v in ((y, y), (x, x), (y, x))]
    count = len(x)
    inner = sum((k.sum() - np.trace(k)) / (count * (count - 1)) for k in kernel[:2])
    people = [str(number // 3) for number in range(12)]
    row = column(files["made"], people)
    assert row["fid"] == pytest.approx(fid, rel=1e-6) and row["kid"] == pytest.approx(inner - 2 * kernel[2].mean())
    assert column(files["real"], people)["fid"] == pytest.approx(0, abs=1e-9)
    assert column(files["real"][:1], ["a"])["fid"] is None and column(files["real"], ["a"] * 12)["kid low"] is None
    without = [column([f for f, p in zip(files["made"], people, strict=True) if p != left],
                      [p for p in people if p != left])["kid"] for left in "0123"]  # fmt: skip
    reach = 3.182446 * np.sqrt(3 / 4 * sum((value - np.mean(without)) ** 2 for value in without))
    assert (row["kid low"], row["kid high"]) == pytest.approx((row["kid"] - reach, row["kid"] + reach))


def test_kid_in_parts_is_kid_as_a_whole(monkeypatch):
    from omniportrait.evaluation.columns import kernel

    draw = np.random.default_rng(0)
    mine, real, people = draw.normal(size=(23, 8)), draw.normal(size=(31, 8)), list("abcdefgabcdefgabcdefgab")
    whole = kernel.kernel_distance(mine, people, real)
    monkeypatch.setattr(kernel, "ROWS", 7)
    assert astuple(kernel.kernel_distance(mine, people, real)) == pytest.approx(astuple(whole))
    assert whole.low < whole.mean < whole.high and whole.people == 7


def test_inceptions_file_is_read_without_running_it(tmp_path):
    """The published architecture with random weights; a file that would run code when it is unpickled is refused."""
    from omniportrait.evaluation.columns.frechet import inception
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(Exception, match="(?i)weights.only"):
        inception(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()
    plain = FeatureExtractorInceptionV3.load_state_dict
    state = {}

    def keep(self, given, *_, **__):
        state.update(self.state_dict())

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", keep)
        theirs = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none")
    assert FeatureExtractorInceptionV3.load_state_dict is plain
    torch.save(state, tmp_path / "inception.pth")
    picture = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        (mine,), (expected,) = inception(tmp_path / "inception.pth")(picture), theirs(picture)
    assert mine.shape == (1, 2048) and torch.equal(mine, expected)


def test_likeness(people, album):
    """margin: the other's distance minus the own one's; a portrait without a face has neither."""
    own, other, nobody = people
    column = BuiltInFaces(people)
    vectors = [
        column.recogniser.embed(album.open(p.photo).pixels, album.open(p.photo).face).numpy() for p in (own, other)
    ]
    apart = float(np.sqrt(((vectors[0] - vectors[1]) ** 2).sum()))
    row = column(cell_of(own), album.open(other.photo), album)
    assert row["face"] == 1 and row["distance"] == pytest.approx(apart, rel=1e-5)
    assert row["margin"] == pytest.approx(-apart, abs=1e-5) and row["same"] == float(apart <= 0.6)
    assert row["copied"] is None
    second = Person("a", own.photo, "woman", (other.photo,))
    assert column(cell_of(second), album.open(own.photo), album)["copied"] == pytest.approx(apart, abs=1e-5)
    blank = column(cell_of(own), album.open(nobody.photo), album)
    assert blank == {"face": 0, "distance": None, "same": 0, "margin": None, "copied": None}
    unknown = column(cell_of(nobody), album.open(own.photo), album)
    assert unknown == {"face": 1, "distance": None, "same": None, "margin": None, "copied": None}


def test_every_absent_file_is_a_sentence(tmp_path, tiny_clip):
    from omniportrait.evaluation.columns.blip import Blip

    makers = {"clip": ClipColumns, "iqa": Iqa, "blip": Blip, "facenet": facenet, "arcface": arcface,
              "inception": lambda weights: Frechet(weights, None)}  # fmt: skip
    for folder, maker in makers.items():
        with pytest.raises(NoFile, match=f"nothing in .*{folder}: put .* there"):
            maker(tmp_path / "weights")
    tiny_clip("clip")
    (tmp_path / "weights" / "clip" / "tiny-clip.pt").rename(tmp_path / "weights" / "clip" / "ViT-L-14-mine.pt")
    with pytest.raises(NoFile, match="is not named as a model of open_clip; there are .*ViT-L-14"):
        ClipColumns(tmp_path / "weights")
