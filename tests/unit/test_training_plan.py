"""What decides a training run without touching a picture: settings, order, Eq. 5."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from omniportrait.guidance.omniportrait import objective as loss
from omniportrait.training.data.augment import Augmentation, augment, moved_box
from omniportrait.training.data.plan import Plan, bucket_sizes, nearest
from omniportrait.training.loop import seeded
from omniportrait.training.pivot import config as settings
from omniportrait.training.pivot.config import Config
from omniportrait.training.settings import parse_override, write

SQUARE = [(64, 64)]


# Settings


@pytest.mark.parametrize(("name", "steps", "family"), [("sd15", 80_000, "sd15"), ("sdxl", 60_000, "sdxl")])
def test_recipes_are_the_papers(name, steps, family):
    config = settings.read(name)
    assert (config.steps, config.family, config.rate, config.objective.eta) == (steps, family, 2e-5, 2e-3)
    assert (config.objective.drop_both, config.objective.drop_id, config.trainable_layers) == (0.1, 0.1, None)
    assert config.tower.layers == 24 and config.tower.width == 1024


def test_demo_recipe_reads_the_portrait_world():
    config = settings.read("demo")
    assert config.data.face_labels == (1, 3, 5, 6) and config.data.reference == "identity"
    assert config.architecture == "demo" and config.family == "generic"
    # Moles have a side there, so a mirrored face is another person's; and the tower needs no protection from copying.
    assert config.augmentation.flip_chance == config.augmentation.background_chance == 0.0


def test_settings_survive_a_file(tmp_path):
    config = settings.read("demo", {"data.shards": ["a.tar", "b.tar"], "rate": "3e-4", "trainable_layers": 2})
    write(config, tmp_path / "config.yaml")
    assert settings.read(tmp_path / "config.yaml") == config
    assert config.rate == 3e-4 and config.trainable_layers == 2 and config.data.shards == ("a.tar", "b.tar")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"learning_rate": 1}, "learning_rate is no setting"),
        ({"data.sharts": 1}, "data.sharts is no setting"),
        ({"steps": "many"}, "steps is 'many', but must be a whole number"),
        ({"steps": True}, "steps is True"),
        ({"data.cached": 1}, "data.cached is 1, but must be true or false"),
        ({"objective.maps": "min"}, "objective.maps is 'min', but must be one of max, none, ratio"),
        ({"tower": 3}, "must be a block"),
        ({"tower.mean": "grey"}, "tower.mean is 'grey', but must be a number"),
    ],
)
def test_wrong_settings_are_named(override, said):
    with pytest.raises(ValueError, match=said):
        settings.read("sd15", override)


def test_unknown_config_is_told_what_there_is():
    with pytest.raises(ValueError, match="one of demo, sd15, sdxl"):
        settings.read("sd3")


@pytest.mark.parametrize("missing", ["checkpoint", "out", "data.shards"])
def test_what_a_run_cannot_do_without(missing):
    given = {"checkpoint": "a", "out": "b", "data.shards": ["c"]}
    settings.read("sd15", given).check()
    with pytest.raises(ValueError, match=missing):
        settings.read("sd15", {k: v for k, v in given.items() if k != missing}).check()


@pytest.mark.parametrize("wrong", [{"tower.mean": [0.5]}, {"tower.std": [0.5, 0, 0.5]}, {"tower.mean": [0, 0, 128]}])
def test_normalisation_is_three_numbers(wrong):
    given = {"checkpoint": "a", "out": "b", "data.shards": ["c"]}
    with pytest.raises(ValueError, match="must be three numbers"):
        settings.read("sd15", given | wrong).check()


def test_command_line_settings():
    assert parse_override("data.workers=2") == ("data.workers", 2)
    with pytest.raises(ValueError, match="NAME=VALUE"):
        parse_override("workers")


# Order


def test_every_sample_comes_once_an_epoch_in_another_order():
    plan = Plan([(64, 64)] * 24, SQUARE, 4, seed=3)
    epochs = [[slot for step in range(e * 6, e * 6 + 6) for slot in plan.batch(step).slots] for e in range(2)]
    for number, slots in enumerate(epochs):
        assert sorted(slot.sample for slot in slots) == list(range(24))
        assert [slot.position for slot in slots] == list(range(24)) and {slot.epoch for slot in slots} == {number}
    assert [s.sample for s in epochs[0]] != [s.sample for s in epochs[1]]


def test_any_step_can_be_asked_for_alone():
    shapes = [(64, 64)] * 13 + [(96, 48)] * 9
    sizes = [(64, 64), (96, 48)]
    walked = Plan(shapes, sizes, 4, seed=1)
    order = [walked.batch(step) for step in range(20)]
    assert [Plan(shapes, sizes, 4, seed=1).batch(step) for step in (17, 3, 11)] == [order[17], order[3], order[11]]
    assert [Plan(shapes, sizes, 4, seed=2).batch(step) for step in range(20)] != order


def test_processes_share_a_batch_without_gap_or_overlap():
    batch = Plan([(64, 64)] * 16, SQUARE, 8, seed=0).batch(1)
    assert batch.share(0, 2) + batch.share(1, 2) == batch.slots == batch.share(0, 1)


def test_buckets_do_not_mix_and_small_ones_join_their_neighbour():
    shapes = [(64, 64)] * 10 + [(128, 64)] * 9 + [(120, 64)] + [(64, 128)]
    sizes = bucket_sizes(64, 16, 2.0)
    plan = Plan(shapes, sizes, 4, seed=0)
    assert set(plan.members) == {(64, 64), nearest(128, 64, sizes)}
    assert plan.homes[-1] == (64, 64) and plan.homes[-2] == nearest(128, 64, sizes)
    seen = Counter()
    for step in range(plan.per_epoch):
        batch = plan.batch(step)
        assert len(batch.slots) == 4 and {plan.homes[slot.sample] for slot in batch.slots} == {batch.size}
        seen.update(slot.sample for slot in batch.slots)
    assert set(seen) == set(range(21)) and max(seen.values()) == 2  # filled-up batches repeat a few


def test_fewer_samples_than_a_batch_are_repeated():
    slots = Plan([(64, 64)] * 3, SQUARE, 8, seed=0).batch(0).slots
    assert Counter(slot.sample for slot in slots).most_common(1)[0][1] == 3
    assert len({slot.position for slot in slots}) == 8  # and each copy gets noise of its own


@pytest.mark.parametrize(("resolution", "step", "aspect"), [(512, 64, 2.0), (1024, 64, 2.0), (256, 0, 2.0)])
def test_bucket_sizes(resolution, step, aspect):
    sizes = bucket_sizes(resolution, step, aspect)
    assert (resolution, resolution) in sizes and len(sizes) == len(set(sizes))
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert max(width / height, height / width) <= aspect
        assert 0.8 * resolution**2 <= width * height <= resolution**2
        assert (height, width) in sizes
    assert len(sizes) == 1 if step == 0 else len(sizes) > 4


def test_randomness_hangs_on_its_place_alone():
    def numbers(*place):
        return torch.rand(4, generator=seeded(*place)).tolist()

    assert numbers(1, 2, 3, "noise") == numbers(1, 2, 3, "noise")
    others = [(1, 2, 3, "reference"), (2, 2, 3, "noise"), (1, 3, 3, "noise"), (1, 2, 4, "noise"), (1, 23, "noise")]
    assert all(numbers(*place) != numbers(1, 2, 3, "noise") for place in others)


# Eq. 5


def maps_and_masks():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 4, 4, generator=generator) * 0.1, (torch.rand(2, 4, 4, generator=generator) > 0.5).float()


def test_localisation_is_equation_5():
    maps, masks = maps_and_masks()
    for sample in range(2):
        plain = peak = inside = whole = 0.0
        highest = max(maps[sample].flatten().tolist())
        for i in range(4):
            for j in range(4):
                a, m = float(maps[sample, i, j]), float(masks[sample, i, j])
                plain += (a - m) ** 2 / 16
                peak += (a / (highest + 1e-6) - m) ** 2 / 16
                inside, whole = inside + a * m, whole + a
        expected = {"none": plain, "max": peak, "ratio": (1 - inside / (whole + 1e-6)) ** 2}
        for name, value in expected.items():
            assert float(loss.localisation(maps, masks, name)[sample]) == pytest.approx(value, rel=1e-5)


def test_localisation_brings_the_mask_to_the_maps_grid():
    maps, masks = maps_and_masks()
    fine = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(loss.localisation(maps, fine, "max"), loss.localisation(maps, masks, "max"))


def test_maximum_takes_part_in_the_gradient():
    maps = torch.tensor([[[0.2, 0.1], [0.1, 0.1]]], requires_grad=True)
    loss.localisation(maps, torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), "max").sum().backward()
    assert float(maps.grad[0, 0, 0]) < 0 < float(maps.grad[0, 1, 1])  # a higher maximum lowers all others' share


def test_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalised by"):
        loss.localisation(*maps_and_masks(), "min")


def test_denoising_terms():
    generator = torch.Generator().manual_seed(1)
    predicted, noise = torch.randn(2, 2, 4, 3, 3, generator=generator)
    assert torch.allclose(loss.denoising(predicted, noise), ((predicted - noise) ** 2).flatten(1).mean(1))
    mask = torch.zeros(2, 3, 3)
    mask[:, 1, 2] = 1
    expected = ((predicted - noise) ** 2)[:, :, 1, 2].mean(1)
    assert torch.allclose(loss.denoising_in_face(predicted, noise, mask), expected)


def test_large_maps_are_pooled_to_the_papers_size():
    maps = torch.rand(1, 32, 32)
    assert torch.allclose(loss.pooled(maps)[0, 3, 5], maps[0, 6:8, 10:12].mean())
    assert loss.pooled(torch.rand(1, 16, 16)).shape == (1, 16, 16)
    assert loss.pooled(torch.rand(1, 40, 24)).shape == (1, 20, 12)
    assert loss.pooled(torch.rand(1, 37, 27)).shape == (1, 37, 27)  # odd sides do not halve


# The reference's augmentation


def test_augmentation_follows_its_generator():
    face = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    made = [augment(face, Augmentation(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    for each in made:
        assert each.shape == face.shape and each.min() >= 0 and each.max() <= 1 and each.isfinite().all()


NOTHING = Augmentation(0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("size", [33, 40])
def test_augmentation_without_chances_changes_nothing(size):
    face = torch.rand(3, size, size)
    assert torch.equal(augment(face, NOTHING, torch.Generator()), face)
    assert moved_box((3.0, 4.0, 9.0, 12.0), 0.0, torch.Generator()) == (3.0, 4.0, 9.0, 12.0)


def test_mirror_and_grey_are_exact():
    face = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    mirrored = augment(face, Augmentation(0, 1, 0, 0, 0, 1.0, 0, 0, 0, 0, 0), torch.Generator())
    assert torch.allclose(mirrored, face.flip(-1), atol=1e-5)
    grey = augment(face, Augmentation(0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1.0), torch.Generator())
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])


def test_zoom_enlarges_and_rotation_turns():
    face = torch.zeros(3, 41, 41)
    face[:, 20, 30] = 1  # right of the middle
    always = {"zoom_chance": 1.0, "rotate_chance": 1.0, "flip_chance": 0.0, "elastic_chance": 0.0, "colour_chance": 0.0}
    settings_ = Augmentation(0, 2.0, rotate=30.0, blur_chance=0, grey_chance=0, **always)
    rows, columns = torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij")
    for seed in range(4):
        made = augment(face, settings_, torch.Generator().manual_seed(seed))[0]
        if made.sum() < 0.5:
            continue  # zoomed out of the picture
        x, y = ((grid * made).sum() / made.sum() - 20 for grid in (columns, rows))
        assert 9.5 <= math.hypot(x, y) <= 20.5 and abs(math.degrees(math.atan2(y, x))) <= 31


def test_default_config_is_sd15s_recipe():
    recipe = settings.read("sd15")
    assert recipe == Config(micro_batch=recipe.micro_batch, pretrained_tag="ViT-L-14/laion2b_s32b_b82k")
    assert recipe.augmentation.background_chance == settings.read("sdxl").augmentation.background_chance == 0.5
