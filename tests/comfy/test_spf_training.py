"""SPF-Portrait's training on a small world: both paths, both stages, the file, and what a run must not depend on."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from omniportrait.lab.testbed import small, texts
from omniportrait.lab.world.shards import write_portraits
from omniportrait.lab.world.tailored import Tailored
from omniportrait.training.base import Base, load_base
from omniportrait.training.data.dataset import with_cache
from omniportrait.training.data.index import NO_CAPTION
from omniportrait.training.data.plan import Slot
from omniportrait.training.spf_portrait import lora_file
from omniportrait.training.spf_portrait.config import Config, read
from omniportrait.training.spf_portrait.pictures import LATE_TARGET, NO_TARGET, NOTHING_LEFT
from omniportrait.training.spf_portrait.step import COMPLETE, NOTHING, draw
from omniportrait.training.spf_portrait.task import EXPORT, JOINED, SpfTask
from omniportrait.training.trainer import Trainer, states
from safetensors import safe_open
from training_world import Curve

SMALL = {
    "data.resolution": 64, "data.workers": 0, "data.cached": False, "batch": 4, "micro_batch": 2, "steps": 4, "fit": 2,
    "precision": "fp32", "warmup": 1, "rate": 2e-2, "align_rate": 1e-2, "ema": 0.5, "save_every": 1, "log_every": 1,
    "report_every": 1000, "report_samples": 1, "report_steps": 2, "rank": 4, "alpha": 4.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def hats(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hats")
    write_portraits(folder / "train-000000.tar", Tailored(("hat",), people=2, pictures=6, size=64))
    return folder


def config_of(world: Path, hats: Path, out: Path, **changes) -> Config:
    places = {"checkpoint": str(world / "base.safetensors"), "out": str(out), "data.shards": [str(hats)]}
    return read("demo", SMALL | places | changes)


@pytest.fixture
def task(world, hats, base, tmp_path):
    """A task whose adapters have been moved away from zero."""

    def make(moved: float = 0.3, **changes) -> SpfTask:
        made = SpfTask(config_of(world, hats, tmp_path / "run", **changes), base)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in made.adapters.parameters():
                weight.add_(moved * torch.randn(weight.shape, generator=random) / weight.shape[0] ** 0.5)
        return made

    yield make
    base.attach = None
    base.let_go()


def batch(task: SpfTask, count: int = 3):
    inputs = task.gather([task.data.samples[Slot(number, 0, number)] for number in range(count)])
    return inputs, draw(inputs, task.base.timesteps, task.config.objective, 0)


def trained(config: Config, base: Base, stop_at: int | None = None, resume: bool = False, cached: bool = False):
    accelerator = Accelerator(cpu=True)
    task = SpfTask(config, base)
    if cached:
        task.data = with_cache(task.data, config, base, accelerator)
    trainer, curve = Trainer(task, accelerator, None), Curve()
    assert trainer.resume() == resume
    trainer.run(curve, stop_at)
    return trainer, curve


@pytest.fixture(scope="module")
def reference(world, hats, base, tmp_path_factory):
    """An uninterrupted run of two and two steps, and what the loaded model's weights were before and after."""
    out = tmp_path_factory.mktemp("reference") / "hat"
    before = {name: value.clone() for name, value in base.net.diffusion_model.state_dict().items()}
    trainer, curve = trained(config_of(world, hats, out), base)
    base.let_go()
    after = base.net.diffusion_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    yield out, trainer, curve
    base.attach = None
    base.let_go()


# The two paths


def test_on_the_null_path_an_untrained_model_is_the_original(task):
    """Reference and response read the same and are the same: no term is anything."""
    made = task(moved=0.0, **{"objective.null_path": 1.0})
    made.model.aligning = True
    inputs, chance = batch(made)
    parts = made.model(inputs, chance)
    assert (chance.path != COMPLETE).all()
    assert [float(parts[name][0].detach()) for name in ("denoising", "text", "fine", "map")] == [0, 0, 0, 0]


def test_switched_off_the_network_is_the_original_also_after_an_error(task):
    made = task()
    inputs, chance = batch(made)
    made.base.attach = None
    made.base.let_go()
    original, _ = made.model.both(inputs, chance)
    made.base.attach = made.adapters.attach
    made.base.let_go()
    reference, response = made.model.both(inputs, chance)
    assert torch.equal(reference.noise, original.noise) and not torch.equal(response.noise, reference.noise)
    with pytest.raises(KeyboardInterrupt), made.adapters.off():
        raise KeyboardInterrupt
    assert made.adapters.on and torch.equal(made.model.both(inputs, chance)[1].noise, response.noise)


@pytest.mark.parametrize("learn", ["lora", "attn2"])
def test_gradients_are_the_same_with_checkpointing(task, learn):
    found = []
    for checkpointing in (False, True):
        made = task(**{"objective.null_path": 0.5, "learn": learn})
        made.base.checkpointing = checkpointing
        made.base.let_go()
        made.model.aligning = True
        made.model.factors.fill_(0.3)
        inputs, chance = batch(made, 2)
        chance = replace(chance, path=torch.tensor([COMPLETE, NOTHING]))
        total = made.model.total(made.model(inputs, chance))
        found.append(torch.autograd.grad(total, list(made.model.parameters())))
    made.base.checkpointing = False
    assert all(float(each.abs().max()) > 0 for each in found[0])
    for kept, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, kept, rtol=1e-3, atol=1e-5 * float(kept.abs().max()))


def test_balance_gives_each_terms_gradient_its_share(task):
    made = task(**{"objective.text": 2.0, "objective.fine": 0.5})
    made.model.aligning = True
    (text, fine, enhance), weights = made._factors(), list(made.model.parameters())
    assert float(enhance) == 0  # there is no CLIP
    made.model.factors.copy_(torch.stack([text, fine, enhance]))
    samples = [made.data.samples[Slot(i, -1, i)] for i in range(len(made.data.samples.entries))]
    inputs = made.gather(samples)
    chance = draw(inputs, made.base.timesteps, made.config.objective, 0)
    times = torch.tensor([int((i + 0.5) / len(samples) * made.base.timesteps) for i in range(len(samples))])
    parts = made.model(inputs, replace(chance, path=torch.full_like(chance.path, COMPLETE), timesteps=times))

    def length(name: str) -> float:
        found = torch.autograd.grad(parts[name][0], weights, retain_graph=True, allow_unused=True)
        return float(sum(each.square().sum() for each in found if each is not None).sqrt())

    assert float(text) * length("text") == pytest.approx(2.0 * length("denoising"), rel=1e-2)
    assert float(fine) * length("fine") == pytest.approx(0.5 * length("denoising"), rel=1e-2)


# A run


def test_run_learns_in_two_stages_and_writes_both_files(reference):
    out, trainer, curve = reference
    names = [set(each) for each in curve.steps]
    assert [("text" in each) for each in names] == [False, False, True, True]
    assert all(0 < each["loss"] < 1e4 and each["gradient"] > 0 for each in curve.steps)
    assert (out / EXPORT).is_file() and (out / "lora_fit.safetensors").is_file()
    fit, _ = lora_file.load(out / "lora_fit.safetensors")
    end, targets = lora_file.load(out / EXPORT)
    assert fit.keys() == end.keys() and not all(torch.equal(fit[key], end[key]) for key in fit)
    assert targets == ["wearing a hat"]
    rates = [each["rate"] for each in curve.steps]
    assert rates[0] == pytest.approx(2e-2) and rates[2] == pytest.approx(1e-2)  # each stage begins at its own


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_run_gives_the_same_weights_on_either_side_of_the_border(reference, world, hats, base, tmp_path, stop):
    config = config_of(world, hats, tmp_path / "hat")
    _, before = trained(config, base, stop_at=stop)
    resumed, after = trained(config, base, resume=True)
    assert before.losses() + after.losses() == reference[2].losses()
    ours, theirs = (lora_file.load(out / EXPORT)[0] for out in (tmp_path / "hat", reference[0]))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(resumed.task.model.factors, reference[1].task.model.factors)


def test_micro_batches_and_cache_change_nothing(reference, world, hats, base, tmp_path):
    """The cache is in half precision."""
    _, curve = trained(config_of(world, hats, tmp_path, micro_batch=4), base, cached=True)
    torch.testing.assert_close(curve.losses(), reference[2].losses(), rtol=1e-2, atol=0)


def test_run_does_not_go_on_with_other_terms(reference, world, hats, base):
    for change, said in (({"rank": 2}, "begun with rank 4"), ({"target": "a cap"}, "begun with target")):
        with pytest.raises(ValueError, match=said):
            trained(config_of(world, hats, reference[0], **change), base, resume=True)


def test_sheet_shows_both_models_and_the_map(reference):
    canvas = reference[1].task.sheet()
    assert canvas.shape == (3, 64, 7 * 64) and canvas.isfinite().all() and 0.01 < float(canvas.std())


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_other_families_learn_and_write_what_load_lora_reads(family, vae, hats, tmp_path):
    config = config_of(tmp_path, hats, tmp_path / "run", steps=2, fit=1, **{"objective.control.distance": "states"})
    own = Base(getattr(small, family)(inference=False), texts.clip(family), vae, config)
    trainer, curve = trained(config, own)
    assert {"text", "fine", "map"} <= set(curve.steps[1]) and curve.steps[1]["text"] > 0
    state, _ = lora_file.load(tmp_path / "run" / EXPORT)
    lora_file.check(own.model, state, trainer.task.adapters.names)
    with safe_open(tmp_path / "run" / EXPORT, "pt") as file:
        assert file.metadata()["ss_base_model_version"] == {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}[family]


# The file


def test_load_lora_reads_it_without_a_word_and_gives_the_training_path(reference, base, caplog, task):
    import comfy.sd

    out, trainer, _ = reference
    state, _ = lora_file.load(out / EXPORT)
    with caplog.at_level(logging.DEBUG):
        tuned, _ = comfy.sd.load_lora_for_models(base.model, None, state, 1.0, 0.0)
        nothing, _ = comfy.sd.load_lora_for_models(base.model, None, state, 0.0, 0.0)
    assert not [each for each in caplog.messages if "lora" in each.lower() or "LOADED" in each]
    made = trainer.task
    base.attach = made.adapters.attach
    base.let_go()
    inputs, chance = batch(made, 1)
    with trainer.average.used(), torch.no_grad():
        expected = made.model.both(inputs, chance)[1]
        original = made.model.both(inputs, chance)[0]
    text = [[inputs.texts[COMPLETE].rows[:1], {}]]
    short = [[inputs.texts[1].rows[:1], {}]]
    sigma = float(expected.sigma[0])
    given = {
        "sampler": "euler", "cfg": 1.0, "sigmas": torch.tensor([sigma, 0.0]), "steps": 1, "noise": chance.noise,
        "latent": inputs.latents,
    }  # fmt: skip
    base.let_go()
    denoised = small.sample(tuned, text, **given)
    noise = (expected.x - denoised) / sigma
    assert (expected.noise - original.noise).abs().max() > 1e-3
    torch.testing.assert_close(noise, expected.noise, rtol=1e-2, atol=1e-3)  # the file is in half precision
    assert torch.equal(small.sample(nothing, short, **given), small.sample(base.model, short, **given))


def test_metadata_are_what_browsers_read(reference):
    with safe_open(reference[0] / EXPORT, "pt") as file:
        told, keys = file.metadata(), list(file.keys())
    assert told["modelspec.architecture"] == "omniportrait-demo/lora" and told["ss_network_dim"] == "4"
    assert told["ss_sd_model_name"] == "base.safetensors" and told["omniportrait.stage"] == "align"
    assert told["modelspec.trigger_phrase"] == "wearing a hat"
    assert json.loads(told["ss_tag_frequency"]) == {"1_target": {"wearing a hat": 6}}
    assert json.loads(told["omniportrait.objective"])["null_path"] == 0.5 and told["ss_steps"] == "4"
    assert all(isinstance(value, str) and "/tmp" not in value for value in told.values())
    assert {key.split(".", 1)[1] for key in keys} == {"lora_down.weight", "lora_up.weight", "alpha"}


def test_second_attribute_begins_from_the_first(reference, world, hats, tmp_path):
    """The original of the second run is the model with the first LoRA, and the joined file is both."""
    config = config_of(
        world, hats, tmp_path / "two", start=str(reference[0] / EXPORT), target="wearing a hat", steps=3, fit=2
    )
    own = load_base(config)
    trainer, _ = trained(config, own)
    first, both = lora_file.load(reference[0] / EXPORT)[0], lora_file.load(tmp_path / "two" / JOINED)[0]
    key = next(key for key in first if key.endswith("attn2_to_q.lora_up.weight"))
    assert both[key].shape[1] == first[key].shape[1] + 4
    made = trainer.task
    inputs, chance = batch(made, 1)
    with torch.no_grad():
        reference_path = made.model.both(inputs, chance)[0]
    own.let_go()
    short = [[inputs.texts[1].rows[:1], {}]]
    sigma = float(reference_path.sigma[0])
    given = {"sampler": "euler", "cfg": 1.0, "sigmas": torch.tensor([sigma, 0.0]), "steps": 1}
    plain = load_base(config).model
    tuned = lora_file.patched(plain, first)
    denoised = small.sample(tuned, short, noise=chance.noise, latent=inputs.latents, **given)
    torch.testing.assert_close((reference_path.x - denoised) / sigma, reference_path.noise, rtol=1e-2, atol=1e-3)
    made.targets = Counter({"with glasses": 6})
    made.export(3)
    told = lora_file.load(tmp_path / "two" / JOINED)[1]
    assert told == ["wearing a hat", "with glasses"], "a third one would not know the first"


# Bad data


def told_otherwise(hats: Path, out: Path, changes: dict[int, dict]) -> Path:
    """The shard with other descriptions at some places."""
    out.mkdir()
    number = -1
    with tarfile.open(hats / "train-000000.tar") as source, tarfile.open(out / "train-000000.tar", "w") as target:
        for member in source:
            content = source.extractfile(member).read()
            if member.name.endswith(".json"):
                number += 1
                content = json.dumps(json.loads(content) | changes.get(number, {})).encode()
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return out


def test_bad_samples_are_left_out_and_counted_by_reason(world, hats, base, tmp_path):
    changes = {
        0: {"target": ""},
        1: {"caption": "wearing a hat"},
        2: {"caption": "a man " + "far " * 72},
        3: {"caption": " "},
    }
    bad = told_otherwise(hats, tmp_path / "bad", changes)
    with pytest.raises(SystemExit, match="of the samples were bad") as stopped:
        trained(config_of(world, bad, tmp_path / "run"), base)
    reasons = Counter(line.strip().split("  ", 1)[1] for line in str(stopped.value).splitlines()[2:])
    assert reasons == Counter([NO_TARGET, NOTHING_LEFT, LATE_TARGET, NO_CAPTION])
    base.attach = None


def test_what_makes_no_sense_is_one_sentence(world, hats, tmp_path):
    for changes, said in (
        ({"fit": 9}, "fit is 9, but must be from 0 to steps"),
        ({"fit": 0}, "balance: auto measures"),
        ({"enhance": {"kind": "difference"}}, "enhance.clip is not set"),
        ({"objective.control.blur": 2}, "blur is 2"),
        ({"rank": 0}, "rank is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            config_of(world, hats, tmp_path, **changes).check()


def test_states_are_kept_across_the_border(reference):
    kept = torch.load(states(reference[0])[-1], weights_only=True)
    assert kept["stages"] == {"number": 1, "first": 2} and kept["model"]["factors"].isfinite().all()
