"""The two numbers by which an encoder is judged, where the answer is known."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from omniportrait.lab.bench import evaluation
from omniportrait.lab.bench.evaluation import Evaluation, iou, lines, plain
from omniportrait.lab.testbed import checkpoints
from omniportrait.lab.world.shards import Shard
from omniportrait.lab.world.shards import write as render
from omniportrait.models.pivot import file as pivot_checkpoint
from omniportrait.models.pivot.encoder import PivotConfig, PivotEncoder, TowerConfig
from omniportrait.training.files import write_tensors

TOWER = TowerConfig(image_size=16, patch_size=8, width=16, layers=1, head_width=8)


def test_iou_counts_cells():
    maps, masks = torch.zeros(2, 4, 4), torch.zeros(2, 8, 8)
    maps[0, :2, :2], masks[0, :4, :8] = 0.6, 1.0  # 4 cells of the 8
    maps[1, 0, 0] = 0.4  # below a half: nothing is found
    masks[1, :2, :2] = 1.0
    assert iou(maps, masks).tolist() == [0.5, 0.0]


def test_without_out_nothing_is_left_where_it_was_started(evaluated, tmp_path, monkeypatch):
    _, found = evaluated
    options = argparse.Namespace(**(vars(found.options) | {"out": None}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "load_base", lambda _: found.base)
    again = Evaluation.open(options)
    assert len(again.people) == len(found.people) and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write_tensors(folder / "base.safetensors", checkpoints.demo(model_channels=32))
    render(Shard(folder / "held_out-000000.tar", first=0, count=4, views=1, size=192, seed=0))
    options = argparse.Namespace(
        checkpoint=str(folder / "base.safetensors"), data=[str(folder / "held_out-*.tar")], config="demo", people=4,
        views=1, portraits=1, steps=1, cfg=2.0, seed=0, out=folder / "out.json",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        read = evaluation.settings.read
        patch.setattr(evaluation.settings, "read", lambda name, given: read(name, given | {"data.resolution": 192}))
        return folder, Evaluation.open(options)


def test_portraits_that_are_the_person_are_told_from_others(evaluated, monkeypatch):
    """In place of generated portraits: renders of the person himself, and renders of the next one."""
    _, found = evaluated

    def person(shift: int) -> dict:
        turn = iter(range(len(found.people)))

        def renders(*_, **__) -> torch.Tensor:
            chosen = found.people[(next(turn) + shift) % len(found.people)]
            (sample,) = found._with_reference(chosen, chosen.views, 16)
            return sample.picture[None].float() / 255

        monkeypatch.setattr(evaluation, "portraits", renders)
        return found._distances(None, 16)

    own, other = person(0), person(1)
    assert own["without_face"] == 0
    assert own["distance"]["own"]["mean"] < 0.8 * own["distance"]["others"]["mean"] and own["rank"]["mean"] > 0.9
    assert other["distance"]["own"]["mean"] > own["distance"]["own"]["mean"] and other["rank"]["mean"] < 0.9


def test_spread_between_people_and_within_one(evaluated):
    """An encoder that moves the word by 1, 2, 3, 4 for four people, and by 0.5 more and less for their two pictures."""
    _, found = evaluated
    turn = iter((1.0, 2.0, 3.0, 4.0))

    def encoder(faces, text):
        assert len(faces) == 2
        return text + next(turn) + torch.tensor([[-0.5], [0.5]])

    spread, width = found._spread(encoder, 16), found.base.text_width
    assert spread["between"] == pytest.approx(width**0.5) and spread["within"] == pytest.approx(0.5 * width**0.5)
    assert spread["common"] == pytest.approx(2.5 * width**0.5)


def test_strangers_are_the_next_people_of_the_same_noun(evaluated, monkeypatch):
    _, found = evaluated
    nouns = dict(zip(found.people, ("woman", "man", "woman", "girl"), strict=True))
    monkeypatch.setattr(found, "_noun", nouns.__getitem__)
    one, two, three, four = found.people
    assert [found._rival(each) for each in found.people] == [three, None, one, None]
    nouns |= {two: "woman"}
    assert [found._rival(each) for each in found.people] == [two, three, one, None]


def test_pictures_are_encoded_once_for_all_encoders_and_references(evaluated, monkeypatch):
    _, found = evaluated
    sizes = []
    real = found.base.latents
    monkeypatch.setattr(found.base, "latents", lambda pictures: sizes.append(len(pictures)) or real(pictures))
    monkeypatch.setattr(found, "_known", {})
    monkeypatch.setattr(found, "_noun", lambda _: "woman")
    first = found._stranger(plain, 16), found._attention(None, 16)
    assert (found._stranger(plain, 16), found._attention(None, 16)) == first
    assert sizes == [1] * len(found.people)
    assert first[0]["percent"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "people": 4}


def test_an_encoder_that_spoils_a_strangers_word_is_told(evaluated, monkeypatch):
    """With the person's own face e_mix is the text; with a stranger's it is far from all that the base knows."""
    _, found = evaluated
    monkeypatch.setattr(found, "_noun", lambda _: "woman")

    def encoder_of(*added: float):
        """Adds one number in its first call, the own faces', and one in its second."""
        turn = iter(added)
        return lambda faces, text: text + next(turn)

    worse, better = (found._stranger(encoder_of(*added), 16) for added in ((0.0, 50.0), (50.0, 0.0)))
    assert abs(worse["percent"]["mean"]) > 0.1
    # The other way round the ratios are the inverse ones.
    product = (1 + worse["percent"]["mean"] / 100) * (1 + better["percent"]["mean"] / 100)
    assert product == pytest.approx(1, abs=1e-5)
    assert worse["percent"]["low"] <= worse["percent"]["mean"] <= worse["percent"]["high"]
    text = "\n".join(lines({"known": {"iou": worse["percent"], "stranger": worse}}))
    assert f"{worse['percent']['mean']:+.3f}%  [" in text and f"{worse['at']['700']['mean']:+.3f}% at t = 700" in text


def test_whole_measurement_of_a_file(evaluated):
    folder, found = evaluated
    encoder = PivotEncoder(PivotConfig("generic", (found.base.text_width,), TOWER))
    pivot_checkpoint.save(folder / "untrained.safetensors", encoder, 0, torch.float16)
    results = {"None": found.measure(None), "untrained": found.measure(Path(folder / "untrained.safetensors"))}
    text = "\n".join(lines(results))
    assert "plain text, no encoder" in text and "untrained" in text and "4 people" in text and "e_mix - e_txt" in text
    # An untrained encoder gives e_mix = e_txt, so both rows are one.
    assert results["untrained"].pop("spread") == {"between": 0.0, "within": 0.0, "common": 0.0}
    assert results["untrained"].pop("stranger")["percent"]["mean"] == 0.0
    assert results["None"] == results["untrained"] and 0 <= results["None"]["iou"]["mean"] <= 1
