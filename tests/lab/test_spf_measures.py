"""What `bench spf` measures by, against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch
from omniportrait.lab.bench.spf import shared
from omniportrait.lab.bench.spf_page import at_equal_response, over_prompts, paired
from omniportrait.lab.bench.spf_pictures import Case
from omniportrait.lab.bench.spf_purecc import goal
from omniportrait.lab.bench.spf_runs import NAIVE, OURS, ROWS, TABLE, with_words
from omniportrait.lab.learning.attribute_measures import Pairs
from omniportrait.lab.learning.text import tokenize
from omniportrait.lab.make.attribute_measures import cut
from omniportrait.lab.measures.segments import (
    WORN_CLASSES,
    Segmenter,
    elsewhere,
    frechet,
    overlap,
    perceived_distance,
    worn_share,
)
from omniportrait.training.spf_portrait.config import Config
from omniportrait.training.spf_portrait.latent_towers import LatentTowers, are_latent_towers
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter().requires_grad_(False).eval()


def test_frechet_distance_of_known_sets():
    """Of independent numbers with means m and deviations s: sum (m - m')^2 + (s - s')^2."""
    random = torch.Generator().manual_seed(0)
    plain = torch.randn(200_000, 3, generator=random, dtype=torch.float64)
    one, other = plain * torch.tensor([1.0, 2.0, 0.5]), plain.flip(0) * torch.tensor([2.0, 2.0, 1.0]) + 3
    assert frechet(one, other) == pytest.approx(27 + 1 + 0.25, rel=0.02)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)


def test_overlap_leaves_the_attribute_and_its_surroundings_out():
    one = torch.zeros(1, 8, 8, dtype=torch.long)
    one[0, 4:] = 1
    other = one.clone()
    other[0, 4:, :2] = 4
    everywhere = torch.ones(1, 8, 8, dtype=torch.bool)
    # background 32 of 32; skin 24 of 32; clothes 0 of 8
    assert float(overlap(one, other, everywhere)) == pytest.approx((1 + 24 / 32 + 0) / 3)
    one[0, 7, 7] = WORN_CLASSES["glasses"]
    kept = elsewhere(one)
    assert kept.sum() == 64 - 9 and not kept[0, 5:, 5:].any()
    assert float(worn_share(one, "glasses")) == 1 / 64 and float(worn_share(one, "hat")) == 0


def test_each_attribute_has_the_cut_that_tells_it_from_nothing_best():
    """A hat on 16 of 64 x 64 cells or more, glasses on 4; of nobody's paint nothing is known."""
    labels = torch.zeros(5, 64, 64, dtype=torch.long)
    for picture, (name, cells) in enumerate([("hat", 16), ("hat", 20), ("glasses", 4), ("glasses", 1)]):
        labels[picture, 0, :cells] = WORN_CLASSES[name]

    class Told(Segmenter):
        def labels(self, pictures):
            return labels

    segmenter = Told()
    words = [{"worn": name} for name in ("hat", "hat", "glasses", "", "")]
    right = cut(segmenter, Pairs(torch.zeros(5, 3, 1, 1), labels, words))
    assert right == {"hat": 1.0, "glasses": 1.0}
    assert segmenter.cuts == {"hat": pytest.approx(8 / 4096), "glasses": pytest.approx(2.5 / 4096)}


def test_perceived_distance_counts_where_it_is_asked(segmenter):
    random = torch.Generator().manual_seed(0)
    one = torch.rand(1, 3, 128, 128, generator=random)
    other = one.clone()
    other[..., 64:] = torch.rand(1, 3, 128, 64, generator=random)
    left = torch.zeros(1, 64, 64, dtype=torch.bool)
    left[..., :16] = True
    assert float(perceived_distance(segmenter, one, one)) == 0
    assert float(perceived_distance(segmenter, one, other, left)) < 0.05 * float(
        perceived_distance(segmenter, one, other)
    )


def test_measures_come_back_from_their_files(segmenter, tmp_path):
    segmenter.cuts = {"hat": 0.04}
    segmenter.save(tmp_path / "segmenter.safetensors", {"recipe": "none"})
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    again = Segmenter.load(tmp_path / "segmenter.safetensors")
    torch.testing.assert_close(again(picture), segmenter(picture), rtol=0.05, atol=0.05)
    assert again.cuts == {"hat": 0.04}
    torch.manual_seed(0)
    towers = LatentTowers(["red", "wearing a hat"])
    towers.save(tmp_path / "towers.safetensors", {})
    assert are_latent_towers(tmp_path / "towers.safetensors")
    assert not are_latent_towers(tmp_path / "segmenter.safetensors")
    found = LatentTowers.load(tmp_path / "towers.safetensors")
    assert found.text("a man, Wearing a Hat").shape == (64,)
    with pytest.raises(ValueError, match="know no word of"):
        found.text("a scarf")


def test_means_and_differences_are_over_prompts():
    def row(prompt: int, seed: int, value: float | None, text: str = "complete") -> dict:
        return {"prompt": prompt, "seed": seed, "text": text, "id": value}

    one = [row(0, 0, 1.0), row(30, 1, 3.0), row(1, 0, 6.0), row(2, 0, None), row(1, 0, 99.0, "base")]
    other = [row(0, 0, 1.0), row(1, 0, 2.0), row(2, 0, 5.0)]
    assert over_prompts(one, "id", "complete").mean == 4.0  # 30 is prompt 0 again, with another subject
    assert paired(one, other, "id", "complete").mean == pytest.approx((1 + 4) / 2)
    assert over_prompts(one, "id", "nothing") is None


def test_cases_go_through_prompts_and_subjects():
    found = [Case(number) for number in range(60)]
    assert len({case.base for case in found}) == 60 and found[31].words["subject"] == "man"
    assert found[31].base.startswith(("a ", "an ")) and " man " in found[31].base


def test_rows_name_settings_that_there_are():
    assert {NAIVE, OURS} <= set(ROWS)
    known = set(Config.__dataclass_fields__)
    for row in ROWS.values():
        assert {name.split(".")[0] for name in row.changes} <= known, row.name


def test_an_ordinary_lora_is_compared_where_it_responds_as_often():
    """It shows the attribute in 20% at one strength and in 60% at another; a row with 30% lies a quarter of the way."""

    def rows(shown: list[float], outside: list[float]) -> list[dict]:
        none = {"id": None, "segments": 1.0, "text": "complete"}
        both = [none | {"prompt": n, "shown": s, "outside": o}
                for n, (s, o) in enumerate(zip(shown, outside, strict=True))]  # fmt: skip
        return both + [row | {"text": "base", "shown": 0.0} for row in both]

    results = {
        f"{NAIVE}, strength 0.5": rows([0.2, 0.2], [0.1, 0.3]), NAIVE: rows([0.6, 0.6], [0.5, 0.3]),
        OURS: rows([0.3, 0.3], [0.1, 0.2]), "beyond": rows([0.9, 0.9], [0.1, 0.2]),
    }  # fmt: skip
    table = "\n".join(at_equal_response(results, [name for name in results if NAIVE in name]))
    ours, beyond = (line for line in table.splitlines() if line.startswith((f"| {OURS}", "| beyond")))
    # 0.1 - (0.75 x 0.1 + 0.25 x 0.5) and 0.2 - 0.3
    assert "| 30 | strength 0.5 and strength 1 | **-0.100** [-0.100, -0.100] |" in ours
    assert "no strengths" in beyond


def test_rows_of_one_training_are_one_processs():
    halves = [shared(list(ROWS.values()), part, 2) for part in (1, 2)]
    names = [{row.name for row in half} for half in halves]
    assert names[0] | names[1] == set(ROWS) and not names[0] & names[1]
    for together in ({NAIVE, "gated at inference", f"{NAIVE}, strength 0.75"}, {OURS, "without the map"}):
        assert together <= names[0] or together <= names[1]
    assert min(len({row.training for row in half}) for half in halves) >= 5


def test_words_that_were_never_seen_are_told_apart(tmp_path):
    random = torch.Generator().manual_seed(0)
    table = torch.randn(49408, 8, generator=random)
    hat, park = (int(tokenize([word])[0, 1]) for word in ("hat", "park"))
    unseen = torch.ones(49408, dtype=torch.bool)
    unseen[[park, 49406, 49407]] = False
    table[unseen] = table[~unseen].mean(0)
    save_file({TABLE: table.half()}, tmp_path / "base.safetensors")
    with_words(tmp_path / "base.safetensors", tmp_path / "words.safetensors")
    found = load_file(tmp_path / "words.safetensors")[TABLE].float()
    changed = (found != table.half().float()).any(1).nonzero().flatten().tolist()
    glasses, face = (int(tokenize([word])[0, 1]) for word in ("glasses", "face"))
    assert {hat, glasses, face} <= set(changed) and park not in changed and len(changed) < 15
    assert not torch.equal(found[hat], found[glasses]) and math.isfinite(float(found.sum()))


def test_purecc_adds_the_targets_direction_as_far_as_the_model_goes_there():
    base, empty = torch.full((2, 1, 1, 2), 7.0), torch.zeros(2, 1, 1, 2)
    target = torch.tensor([[2.0, 0.0], [0.0, 4.0]]).view(2, 1, 1, 2)
    complete = torch.tensor([[1.0, 5.0], [3.0, -2.0]]).view(2, 1, 1, 2)
    # the parts of (1, 5) along (2, 0) and of (3, -2) along (0, 4)
    expected = torch.tensor([[1.0, 0.0], [0.0, -2.0]]).view(2, 1, 1, 2)
    torch.testing.assert_close(goal(complete + base, base, target, empty), expected + 7)
