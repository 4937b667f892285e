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
from omniportrait import environment
from omniportrait.lab.bench import ablation, sweeps
from omniportrait.lab.bench import judge as judging
from omniportrait.lab.bench.campaign import Campaign, named
from omniportrait.lab.bench.judge import COLUMNS, PEOPLE, VIEWS, Judge, on_face, picture_of
from omniportrait.lab.bench.portraits import (
    SIZE,
    Case,
    Made,
    Studio,
    Variant,
    drawn,
    sitter,
    stranger,
)
from omniportrait.lab.bench.sheets import contact_sheet
from omniportrait.lab.measures.text import TextMeasure
from omniportrait.lab.world.prompts import HELD_OUT_PROMPTS
from omniportrait.models.faces.mask import face_oval

CASE = Case(0, 0)


@pytest.fixture(scope="module")
def files(random_model) -> Path:
    """A random model, encoder and text measure, and cuts."""
    words = {
        name: sorted({getattr(prompt, name) for prompt in HELD_OUT_PROMPTS})
        for name in ("expression", "colour", "garment", "background")
    }
    TextMeasure(words | {"subject": ["man", "woman"]}).save(random_model / "text.safetensors", {})
    cuts = {"identity": 0.5, "detail": 0.5, "identity_generated": 0.5, "detail_generated": 0.5}
    (random_model / "cuts.json").write_text(json.dumps(cuts))
    return random_model


@pytest.fixture
def registered(monkeypatch):
    """What the studio adds to ComfyUI is taken back."""
    monkeypatch.setattr(comfy.supported_models, "models", list(comfy.supported_models.models))
    monkeypatch.setattr(comfy.sd.VAE, "__init__", comfy.sd.VAE.__init__)


@pytest.fixture(scope="module", autouse=True)
def few_rivals():
    """Each of a person's rivals is rendered and looked at four times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "RIVALS", 3)
        yield


@pytest.fixture(scope="module")
def judge(files, few_rivals) -> Judge:
    return Judge(files / "text.safetensors", files / "cuts.json")


def options(files, store, *more: str, of=ablation):
    names = {"checkpoint": "base", "encoder": "pivot", "text-measure": "text"}
    given = [word for name, file in names.items() for word in (f"--{name}", str(files / f"{file}.safetensors"))]
    given += ["--thresholds", str(files / "cuts.json"), "--store", str(store), "--page", str(store / "page.md")]
    return of.parser().parse_args([*given, "--identities", "1", "--prompts", "1", "--set", "steps=3", *more])


def test_rows_can_be_chosen(files, tmp_path):
    def named(*words: str) -> list[str]:
        return [row.name for row in ablation.variants(options(files, tmp_path, *words))]

    every = named()
    assert named("--without", "literal strength") == [name for name in every if name != "literal strength"]
    assert named("--only", ablation.TRUTH, ablation.UNGUIDED) == [ablation.UNGUIDED, ablation.TRUTH]
    with pytest.raises(SystemExit, match="the rows are full, without RB-Guidance, "):
        named("--without", "strength")
    with pytest.raises(SystemExit, match="No generated row"):
        named("--only", ablation.TRUTH)


@pytest.mark.slow
def test_two_variants_resume_without_making_anything_twice(files, registered, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--store", "/somewhere/else"])
    chosen = options(files, tmp_path, "--without", "literal strength")
    rows = [v for v in ablation.variants(chosen) if v.name in (ablation.FULL, "without RB-Guidance")]
    campaign = Campaign(chosen)
    first = campaign.measure(rows)
    (full,), (off,) = first.values()
    assert len(set(COLUMNS)) == len(COLUMNS) and set(COLUMNS) <= set(full)
    assert full["guided"] == 1.0 and full["amount"] > 0 and off["iou"] is off["guided"] is None
    guided, plain = (campaign.studio.portrait(CASE, v) for v in rows)
    assert not torch.equal(guided.picture, plain.picture), "the guidance did nothing"
    assert 0 < guided.mask.sum() < guided.mask.numel() and not plain.mask.any()
    assert campaign.studio.file(CASE, rows[0].unguided) == campaign.studio.file(CASE, rows[1])

    assert campaign.studio.seconds(CASE, rows[1]) > 0
    stopwatch = iter([9.0, 1.0, 3.0, 2.0, 8.0, 2.0, 5.0, 2.0])  # guided and unguided by turns; the first pair warms up
    with monkeypatch.context() as patch:
        patch.setattr(Studio, "seconds", lambda *_: next(stopwatch))
        times = campaign.times(rows[:1], rounds=3)
    assert times == {ablation.FULL: 2.5}, "the median of the shares"
    text = ablation.page(campaign, first, times, "sheet.png")
    assert "| without RB-Guidance |" in text and "steps=" not in text and "somewhere" not in text
    (added,) = (line for line in text.splitlines() if line.startswith("| RB-Guidance, with the pivot |"))
    assert f" {full['detail'] - off['detail']:+.1%}".rstrip("%") in added.replace("**", "")
    assert "| both |" not in text, "its rows are not here"
    (left_out,) = (line for line in text.splitlines() if line.startswith("Rows left out here: "))
    assert "*literal strength*" in left_out and f"*{ablation.FULL}*" not in left_out
    assert contact_sheet(campaign.studio, rows, [CASE], side=32).width == 3 * 32

    monkeypatch.setattr(Studio, "_make", None)  # would raise
    kept = campaign.file.read_text()
    campaign.file.write_text(kept[:-20])  # as an interruption may leave the last line
    assert Campaign(chosen).measure(rows) == first, "the cut row should be judged again, from its picture"
    monkeypatch.setattr(Judge, "__call__", None)
    assert Campaign(chosen).measure(rows) == first
    other = Campaign(options(files, tmp_path, "--set", "gain=41"))
    assert other.key(rows[0]) != campaign.key(rows[0]) and other.key(rows[1]) == campaign.key(rows[1])


def test_which_inputs_are_swept(files, tmp_path):
    def named(*words: str) -> list[str]:
        return list(sweeps.plan(options(files, tmp_path, *words, of=sweeps)))

    encoders = ["--encoders", "x=x.safetensors"]
    assert named() == list(sweeps.SWEEPS)
    assert named("--inputs", "u", "t0") == ["u", "t0"]
    assert named("--inputs", "attention") == list(sweeps.ATTENTION)
    assert named(*encoders) == [sweeps.ENCODERS]
    assert named("--inputs", "all", *encoders) == [*sweeps.SWEEPS, sweeps.ENCODERS]


@pytest.mark.slow
def test_a_sweep_s_page(files, registered, tmp_path, monkeypatch):
    """Every value is compared with the same run unguided; the demo's own value, under whatever name, is made once."""
    monkeypatch.setattr(sys, "argv", ["sweeps.py"])
    given = ["--values", "gain=10,40", "feature_block=1,4", "--also", "both: ensemble=1 t0=271"]
    chosen = options(files, tmp_path, *given, "--first", "3", of=sweeps)
    campaign, swept = Campaign(chosen), sweeps.plan(chosen)
    variants = [variant for by_value in swept.values() for variant in by_value.values()]
    results = campaign.measure([each for variant in variants for each in (variant.unguided, variant)])
    assert len({campaign.key(v) for v in variants}) == 4 == len(variants) - 1  # gain 40 and block 4 are the demo's own
    assert len({campaign.key(v.unguided) for v in variants}) == 1
    assert {row["person"] for rows in results.values() for row in rows} == {3}
    times = {variant.name: 1.5 for variant in variants}
    times["feature_block 4"] = 1.25
    text = sweeps.page(campaign, swept, results, times, tmp_path / "images")
    assert text.count("Sampling time over off: ") == 1 and "over off: 1 1.50, 4 1.25." in text
    assert "| 40* |" in text and "| 4* |" in text and "| both |" in text and "over the own value" in text
    for name in ("gain.png", "feature_block.png", "combined.png", "time.png", "prompt.png", "gain_sheet.jpg"):
        assert (tmp_path / "images" / f"sweep_{name}").stat().st_size > 1000

    with pytest.raises(SystemExit, match="wrong: Feature block 40 does not exist"):
        campaign.measure([Variant("wrong", chosen.encoder, {"feature_block": 40})])


def test_off_takes_one_thing_away_and_keeps_the_sampler():
    both = Variant("x", None, {"cfg": 7.0, "gain": 3.0, "attention_strength": 2.0})
    assert both.off.inputs == {"cfg": 7.0, "strength": 0.0, "attention_strength": 2.0}
    assert both.off.off.inputs == {"cfg": 7.0, "strength": 0.0, "attention_strength": 0.0}


def test_reference_attention_is_part_of_what_a_picture_is_known_by(files, tmp_path):
    studio = Campaign(options(files, tmp_path)).studio

    def key(**inputs: object) -> str:
        return studio.key(Variant("x", None, inputs))

    assert key(strength=0.0) == key(strength=0.0, attention_strength=0.0, attention_levels="all")
    attended = [key(strength=0.0, attention_strength=1.0, attention_levels=levels) for levels in ("finest", "all")]
    assert len({key(strength=0.0), key(), key(attention_strength=1.0), *attended}) == 5


@pytest.mark.slow
def test_reference_attention_makes_another_picture(files, registered, tmp_path):
    studio = Campaign(options(files, tmp_path)).studio
    with_it = Variant("x", files / "pivot.safetensors", {"strength": 0.0, "attention_strength": 1.0})
    attended, off = (studio.portrait(CASE, variant) for variant in (with_it, with_it.off))
    assert not torch.equal(attended.picture, off.picture) and attended.guided is None


def test_the_embedded_model_is_sampled_as_the_demo_samples_it(files, registered, tmp_path):
    """Said on the page; --set has the last word."""
    workflow = json.loads((environment.ROOT / "workflows" / "api" / "omniportrait_demo.json").read_text())
    (own,) = (n["inputs"] for n in workflow.values() if n["class_type"] == "OmniPortraitRBGuidanceKSampler")
    chosen = options(files, tmp_path)
    chosen.set = []
    campaign = Campaign(chosen)
    for name in ("sampler_name", "scheduler", "steps", "cfg", "u", "t0", "clip", "every", "feature_block"):
        assert campaign.studio.inputs[name] == own[name]
    told = campaign.told_settings()
    assert told.startswith("dpmpp_2m_sde, karras, 30 steps, cfg 4, ")
    for name in ("u", "t0", "every", "feature_block"):
        assert f", {name} {own[name]}" in told
    assert ", clip " not in told, "what is as the nodes have it is not told"
    assert "gain" not in told  # it is the node's own
    chosen.set = [("steps", 7), ("scheduler", "normal"), ("gain", 9.0)]
    told = Campaign(chosen).told_settings()
    assert told.startswith("dpmpp_2m_sde, normal, 7 steps, cfg 4, ") and ", gain 9.0" in told


def test_a_render_through_the_autoencoder(files, registered, tmp_path):
    """`copied` is the drawn picture encoded and decoded by the checkpoint's own VAE, and is kept apart from it."""
    studio = Campaign(options(files, tmp_path)).studio
    clean, copy = (studio.portrait(CASE, Variant(source, source=source)).picture for source in ("drawn", "copied"))
    assert torch.equal(clean, picture_of(drawn(CASE)))
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


def test_generated_pictures_have_cuts_of_their_own(files, judge, tmp_path):
    """A mole that the autoencoder has paled counts by the cut that was calibrated on copies."""
    person = next(i for i in range(20) if sum(d["kind"] == "mole" for d in sitter(i).record["details"]) > 1)
    cuts = {"identity": -1.0, "detail": 99.0, "identity_generated": 9.0, "detail_generated": -99.0}
    file = tmp_path / "cuts.json"
    file.write_text(json.dumps(cuts))
    cut = Judge(files / "text.safetensors", file)
    cut.known, cut.others_views, cut.rivals = judge.known, judge.others_views, judge.rivals  # no cut is in them
    made = Made(picture_of(sitter(person)), torch.zeros(SIZE, SIZE, dtype=torch.bool))
    generated, drawn_one = (cut(Case(person, 0), made, None, False, drawn=flag) for flag in (False, True))
    assert generated["kept"] == generated["same"] == 1.0 and drawn_one["kept"] == drawn_one["same"] == 0.0
    assert generated["contrast"] == drawn_one["contrast"] and generated["distance"] == drawn_one["distance"]

    file.write_text(json.dumps({"identity": 0.5, "detail": 0.5}))
    with pytest.raises(SystemExit, match="holds no 'identity_generated'"):
        Judge(files / "text.safetensors", file)


@pytest.mark.slow
def test_the_judge_on_portraits_whose_truth_is_known(judge):
    """The reference itself is the person, with all moles, in the same place; another person is farther; a patch in
    the background is a change there; and a grey picture is nobody."""
    person = next(i for i in range(20) if sum(d["kind"] == "mole" for d in sitter(i).record["details"]) > 1)
    case, picture = Case(person, 0), picture_of(sitter(person))
    face, *_ = judge.known(person)
    oval = face_oval(face.found, SIZE) > 0.5
    own = judge(case, Made(picture, oval, 0.8, 0.1), Made(picture, oval), True)
    assert own["distance"] < 1e-4 and own["similarity"] > 0.9999 and own["same"] == own["face"] == own["iou"] == 1.0
    assert own["kept"] == 1.0 and own["change"] == 0.0 and (own["guided"], own["amount"]) == (0.8, 0.1)
    assert own["margin"] > 0.1 and own["detail"] == own["kept"] - own["false"] > 0.5

    other = judge(case, Made(picture_of(sitter(stranger(person))), ~oval), None, True)
    assert other["distance"] > 0.2 and other["similarity"] < own["similarity"] and other["iou"] < 0.3
    assert other["contrast"] < own["contrast"] and other["change"] is other["guided"] is None
    assert other["margin"] < 0 and other["detail"] < own["detail"]

    patched = picture.clone()
    patched[:, -16:, :16] = 1 - patched[:, -16:, :16].round()
    outside = face_oval(face.found, SIZE, 1.25) == 0
    changed = judge(case, Made(patched, oval), Made(picture, oval), False)
    expected = (patched - picture).abs().mean(0)[outside].mean() * 255
    assert changed["change"] == pytest.approx(float(expected), rel=1e-4) and changed["iou"] is None

    nobody = judge(case, Made(torch.full((3, SIZE, SIZE), 0.5), oval), None, True)
    assert nobody["face"] == nobody["same"] == nobody["kept"] == nobody["iou"] == nobody["subject"] == 0.0
    assert nobody["margin"] == nobody["false"] == nobody["detail"] == 0.0
    assert nobody["distance"] is nobody["similarity"] is nobody["contrast"] is None


@pytest.mark.slow
def test_margin_and_false_moles_by_hand(judge):
    """The margin's distances one by one; and moles of other people, painted on, are false ones."""
    person = next(i for i in range(20) if sum(d["kind"] == "mole" for d in sitter(i).record["details"]) > 1)
    picture = picture_of(sitter(person, 5))
    row = judge(Case(person, 0), Made(picture, torch.zeros(SIZE, SIZE, dtype=torch.bool)), None, False)
    vector = judge.look(picture).vector
    rivals, noun = judge.rivals(person), sitter(person).record["subject"]
    assert person not in rivals and {sitter(other).record["subject"] for other in rivals} == {noun}
    assert max(rivals) < PEOPLE

    def away(other: int) -> float:
        seen = [judge.look(picture_of(sitter(other, view))) for view in VIEWS]
        return float((vector - torch.stack([face.vector for face in seen if face]).mean(0)).norm())

    expected = sum(map(away, rivals)) / len(rivals) - away(person)
    assert row["margin"] == pytest.approx(expected, abs=1e-5)

    face = judge.look(picture)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    painted = picture.clone()
    for moles in (judge.known(rival)[1].carried(face.landmarks) for rival in rivals):
        for (left, top), radius in zip(moles.places, moles.radii.clamp(min=1.5), strict=True):
            painted[:, (x - left) ** 2 + (y - top) ** 2 < radius**2] *= 0.5
    marks = judge.known(person)[2]
    before, after = (judge._false(person, each, face, marks, judge.cuts["detail"]) for each in (picture, painted))
    assert before == row["false"] and after > before + 0.5 and row["detail"] == row["kept"] - before


def test_places_of_a_chip_on_the_face():
    inside = on_face(9, 9)
    assert inside[3:6, 3:6].all() and not inside[0, 0] and not inside[0, -1] and not inside[-1, 0]


def test_a_portrait_survives_its_file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, SIZE, SIZE), generator=generator).float() / 255
    made = Made(picture, picture[0] > 0.7, 1.0, 0.125)
    made.save(tmp_path / "a.png")
    again = Made.load(tmp_path / "a.png")
    torch.testing.assert_close(again.picture, picture, atol=1e-6, rtol=0)
    assert torch.equal(again.mask, made.mask) and (again.guided, again.amount) == (1.0, 0.125)
    Made(picture, made.mask).save(tmp_path / "b.png")
    assert Made.load(tmp_path / "b.png").guided is None


def test_words_of_the_command_line():
    name, inputs = named("gain 200, no cap: gain=200 clip=0 background_masking=false feature_block=2")
    assert name == "gain 200, no cap"
    assert inputs == {"gain": 200.0, "clip": 0.0, "background_masking": False, "feature_block": 2}
    for wrong in ("gain=200", "a: nothing=1", "a: gamma=2.5"):
        with pytest.raises(Exception, match="should read|has no input|is no int"):
            named(wrong)
