"""The ablation and the sweeps in small: real nodes on a random model of the demo's shape, and the judge on portraits
whose truth is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import comfy.sd
import comfy.supported_models
import pytest
import safetensors.torch
import torch
from omniportrait import run

sys.path.insert(0, str(Path(run.__file__).parent / "benchmarks"))

import ablation  # noqa: E402
import sweeps  # noqa: E402
from _campaign import Campaign  # noqa: E402
from _judge import COLUMNS, Judge  # noqa: E402
from _portraits import SIZE, Case, Made, Studio, Variant, drawn, sitter  # noqa: E402
from omniportrait.demo import random_weights  # noqa: E402
from omniportrait.demo.measures.text import TextMeasure  # noqa: E402
from omniportrait.demo.world.prompts import HELD_OUT_PROMPTS  # noqa: E402
from omniportrait.models import pivot_checkpoint  # noqa: E402
from omniportrait.models.face.mask import face_oval  # noqa: E402
from omniportrait.models.pivot_encoder import PivotConfig, PivotEncoder, TowerConfig  # noqa: E402

CASE = Case(0, 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A random model, encoder and text measure, and cuts."""
    folder = tmp_path_factory.mktemp("weights")
    random_weights.write(random_weights.checkpoint(), folder / "base.safetensors")
    torch.manual_seed(0)
    tower = TowerConfig(image_size=32, patch_size=8, width=32, layers=1, head_width=16)
    pivot_checkpoint.save(folder / "pivot.safetensors", PivotEncoder(PivotConfig("generic", (128,), tower)), 0)
    words = {name: sorted({getattr(p, name) for p in HELD_OUT_PROMPTS}) for name in ("expression", "colour")}
    words |= {name: sorted({getattr(p, name) for p in HELD_OUT_PROMPTS}) for name in ("garment", "background")}
    TextMeasure(words | {"subject": ["man", "woman"]}).save(folder / "text.safetensors", {})
    cuts = {"identity": 0.5, "detail": 0.5, "identity_generated": 0.5, "detail_generated": 0.5}
    (folder / "cuts.json").write_text(json.dumps(cuts))
    return folder


@pytest.fixture
def registered(monkeypatch):
    """What the studio adds to ComfyUI is taken back."""
    monkeypatch.setattr(comfy.supported_models, "models", list(comfy.supported_models.models))
    monkeypatch.setattr(comfy.sd.VAE, "__init__", comfy.sd.VAE.__init__)


@pytest.fixture(scope="module")
def judge(files) -> Judge:
    return Judge(files / "text.safetensors", files / "cuts.json")


def options(files, store, *more: str, of=ablation):
    names = {"checkpoint": "base", "encoder": "pivot", "text-measure": "text"}
    given = [word for name, file in names.items() for word in (f"--{name}", str(files / f"{file}.safetensors"))]
    given += ["--thresholds", str(files / "cuts.json"), "--store", str(store), "--page", str(store / "page.md")]
    return of.parser().parse_args([*given, "--identities", "1", "--prompts", "1", "--set", "steps=3", *more])


def test_two_variants_resume_without_making_anything_twice(files, registered, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--store", "/somewhere/else"])
    chosen = options(files, tmp_path)
    rows = [v for v in ablation.variants(chosen) if v.name in (ablation.FULL, "without RB-Guidance")]
    campaign = Campaign(chosen)
    first = campaign.measure(rows)
    (full,), (off,) = first.values()
    assert len(set(COLUMNS)) == len(COLUMNS) and set(COLUMNS) <= set(full)
    assert full["seconds"] > 0 and off["iou"] is None
    guided, plain = (campaign.studio.portrait(CASE, v) for v in rows)
    assert not torch.equal(guided.picture, plain.picture), "the guidance did nothing"
    assert 0 < guided.mask.sum() < guided.mask.numel() and not plain.mask.any()
    assert campaign.studio.file(CASE, rows[0].unguided) == campaign.studio.file(CASE, rows[1])

    text = ablation.page(campaign, first, "sheet.png")
    assert "| without RB-Guidance |" in text and "steps=" not in text and "somewhere" not in text
    assert ablation.contact_sheet(campaign, rows, [CASE], side=32).width == 3 * 32
    swept = sweeps.plan(options(files, tmp_path, "--inputs", "gain", "every", "--smoke", of=sweeps))
    variants = [variant for by_value in swept.values() for variant in by_value.values()]
    results = {"off": first["without RB-Guidance"]} | {v.name: first[ablation.FULL] for v in variants}
    assert "| 10 |" in sweeps.page(campaign, swept, results, tmp_path / "images")
    for name in ("gain", "costs"):
        assert (tmp_path / "images" / f"sweep_{name}.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(Studio, "_make", None)  # would raise
    kept = campaign.file.read_text()
    campaign.file.write_text(kept[:-20])  # as an interruption may leave the last line
    assert Campaign(chosen).measure(rows) == first, "the cut row should be judged again, from its picture"
    monkeypatch.setattr(Judge, "__call__", None)
    assert Campaign(chosen).measure(rows) == first
    other = Campaign(options(files, tmp_path, "--set", "gain=41"))
    assert other.key(rows[0]) != campaign.key(rows[0]) and other.key(rows[1]) == campaign.key(rows[1])


def test_the_embedded_model_is_sampled_as_the_demo_samples_it(files, registered, tmp_path):
    """Said on the page; --set has the last word."""
    workflow = json.loads((Path(run.__file__).parent / "workflows" / "api" / "omniportrait_demo.json").read_text())
    (own,) = (n["inputs"] for n in workflow.values() if n["class_type"] == "OmniPortraitRBGuidanceKSampler")
    chosen = options(files, tmp_path)
    chosen.set = []
    campaign = Campaign(chosen)
    for name in ("sampler_name", "scheduler", "steps", "cfg"):
        assert campaign.studio.inputs[name] == own[name]
    assert campaign.told_settings().startswith("dpmpp_2m, karras, 25 steps, cfg 4;")
    chosen.set = [("steps", 7), ("scheduler", "normal"), ("gain", 9.0)]
    assert Campaign(chosen).told_settings().startswith("dpmpp_2m, normal, 7 steps, cfg 4, gain 9.0;")


def test_a_render_through_the_autoencoder(files, registered, tmp_path):
    """`copied` is the drawn picture encoded and decoded by the checkpoint's own VAE, and is kept apart from it."""
    studio = Campaign(options(files, tmp_path)).studio
    clean, copy = (studio.portrait(CASE, Variant(source, source=source)).picture for source in ("drawn", "copied"))
    assert torch.equal(clean, as_picture(drawn(CASE)))
    state = safetensors.torch.load_file(files / "base.safetensors")
    inside = "first_stage_model."
    vae = comfy.sd.VAE(sd={k.removeprefix(inside): v for k, v in state.items() if k.startswith(inside)})
    with torch.inference_mode():
        again = vae.decode(vae.encode(clean[None].movedim(1, -1)))[0].movedim(-1, 0).cpu()
    torch.testing.assert_close(copy, again, atol=0.02, rtol=0)
    assert (copy - clean).abs().mean() > 0.02
    assert Studio(files / "base.safetensors", tmp_path, {}).key(Variant("x", source="copied")) == studio.key(
        Variant("y", source="copied")
    ), "how it is sampled does not touch a render"


def test_generated_pictures_have_cuts_of_their_own(files, tmp_path):
    """A mole that the autoencoder has paled counts by the cut that was calibrated on copies."""
    person = next(i for i in range(20) if sum(d["kind"] == "mole" for d in sitter(i).record["details"]) > 1)
    cuts = {"identity": -1.0, "detail": 99.0, "identity_generated": 9.0, "detail_generated": -99.0}
    file = tmp_path / "cuts.json"
    file.write_text(json.dumps(cuts))
    judge = Judge(files / "text.safetensors", file)
    made = Made(as_picture(sitter(person)), torch.zeros(SIZE, SIZE, dtype=torch.bool), 0.0)
    generated, drawn_one = (judge(Case(person, 0), made, None, False, drawn=flag) for flag in (False, True))
    assert generated["kept"] == generated["same"] == 1.0 and drawn_one["kept"] == drawn_one["same"] == 0.0
    assert generated["contrast"] == drawn_one["contrast"] and generated["distance"] == drawn_one["distance"]

    file.write_text(json.dumps({"identity": 0.5, "detail": 0.5}))
    with pytest.raises(SystemExit, match="holds no 'identity_generated'"):
        Judge(files / "text.safetensors", file)


def as_picture(portrait) -> torch.Tensor:
    return torch.from_numpy(portrait.picture.copy()).movedim(-1, 0).float() / 255


def test_the_judge_on_portraits_whose_truth_is_known(judge):
    """The reference itself is the person, with all moles, in the same place; another person is farther; a patch in
    the background is a change there; and a grey picture is nobody."""
    person = next(i for i in range(20) if sum(d["kind"] == "mole" for d in sitter(i).record["details"]) > 1)
    case, picture = Case(person, 0), as_picture(sitter(person))
    face, moles = judge.known(person)
    oval = face_oval(face.found, SIZE) > 0.5
    own = judge(case, Made(picture, oval, 1.5), Made(picture, oval, 1.5), True)
    assert own["distance"] < 1e-4 and own["similarity"] > 0.9999 and own["same"] == own["face"] == own["iou"] == 1.0
    assert own["kept"] == 1.0 and own["change"] == 0.0 and own["seconds"] == 1.5

    other = judge(case, Made(as_picture(sitter(person + 1)), ~oval, 0.0), None, True)
    assert other["distance"] > 0.2 and other["similarity"] < own["similarity"] and other["iou"] < 0.3
    assert other["contrast"] < own["contrast"] and other["change"] is other["seconds"] is None

    patched = picture.clone()
    patched[:, -16:, :16] = 1 - patched[:, -16:, :16].round()
    outside = face_oval(face.found, SIZE, 1.25) == 0
    changed = judge(case, Made(patched, oval, 1.0), Made(picture, oval, 1.0), False)
    expected = (patched - picture).abs().mean(0)[outside].mean() * 255
    assert changed["change"] == pytest.approx(float(expected), rel=1e-4) and changed["iou"] is None

    nobody = judge(case, Made(torch.full((3, SIZE, SIZE), 0.5), oval, 1.0), None, True)
    assert nobody["face"] == nobody["same"] == nobody["kept"] == nobody["iou"] == nobody["subject"] == 0.0
    assert nobody["distance"] is nobody["similarity"] is nobody["contrast"] is None


def test_a_portrait_survives_its_file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, SIZE, SIZE), generator=generator).float() / 255
    made = Made(picture, picture[0] > 0.7, 1.25)
    made.save(tmp_path / "a.png")
    again = Made.load(tmp_path / "a.png")
    torch.testing.assert_close(again.picture, picture, atol=1e-6, rtol=0)
    assert torch.equal(again.mask, made.mask) and again.seconds == 1.25


def test_words_of_the_command_line():
    name, inputs = ablation.named("gain 200, no cap: gain=200 clip=0 background_masking=false feature_block=2")
    assert name == "gain 200, no cap"
    assert inputs == {"gain": 200.0, "clip": 0.0, "background_masking": False, "feature_block": 2}
    for wrong in ("gain=200", "a: nothing=1", "a: gamma=2.5"):
        with pytest.raises(Exception, match="should read|has no input|is no int"):
            ablation.named(wrong)
    assert Variant("x", None, {"u": 0.4}).unguided.inputs == {"strength": 0.0}
