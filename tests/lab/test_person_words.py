"""Words for people, the weights of noise levels, and attention that looks at the noun: against plain computations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from omniportrait.demo import architecture
from omniportrait.lab.learning import denoising, levels, nouns, reading, words
from omniportrait.lab.learning.text import tokenize
from omniportrait.lab.make.tower_words import share_explained
from omniportrait.lab.world.identity import identity
from omniportrait.training.loop import seeded

CAPTIONS = ["a smiling woman in a red suit", "a photo of a man", "an old man at sunset", ""]


def test_noun_columns_are_where_the_noun_stands():
    assert words.noun_columns(tokenize(CAPTIONS)).tolist() == [3, 5, 3, 0]


def test_words_are_added_to_the_noun_alone():
    states, said = torch.randn(4, 77, 8), torch.randn(4, 8)
    changed = words.with_words(states, said, torch.tensor([3, 5, 3, 0]))
    expected = states.clone()
    for row, column in ((0, 3), (1, 5), (2, 3)):  # the empty caption has no noun
        expected[row, column] += said[row]
    torch.testing.assert_close(changed, expected)


def test_a_person_is_described_once_and_kept(tmp_path, monkeypatch):
    file = tmp_path / "cache" / "people.npz"
    shapes, appearances = words.known([3, 8], cache=file)
    assert shapes.shape == (2, words.shape_size()) and appearances.shape == (2, words.LOOKS)
    np.testing.assert_array_equal(appearances[1], words.appearance(identity(8)))
    with monkeypatch.context() as patched:
        patched.setattr(words, "identity", None)  # must not be asked again
        again = words.known([3, 8], cache=file)
    assert torch.equal(again[0], shapes) and torch.equal(again[1], appearances)
    assert not torch.equal(words.known([3, 9], cache=file)[1], appearances)


@pytest.fixture
def fitted():
    """Words fitted to ninety people whose heads differ in three ways, and to states that use 40 directions."""
    random = torch.Generator().manual_seed(0)
    shapes = torch.randn(90, 3, generator=random) @ torch.randn(3, 60, generator=random) + 5.0
    appearances = torch.randn(90, words.LOOKS, generator=random) * 0.3
    states = torch.randn(5, 77, 40, generator=random) @ torch.randn(40, 128, generator=random)
    made = words.Words(60)
    made.fit(shapes, appearances)
    made.lay(states)
    return made, shapes, appearances, states


def test_descriptions_tell_people_apart(fitted):
    made, shapes, appearances, _ = fitted
    told = made.descriptions(shapes, appearances)
    assert told.shape == (90, words.AXES + words.LOOKS) and told.abs().max() <= words.FARTHEST
    assert (told[:, :3].std(0) > 0.5).all() and told[:, 3 : words.AXES].abs().max() < 1e-2
    torch.testing.assert_close(told[:, words.AXES :].std(0), torch.ones(words.LOOKS), atol=0.05, rtol=0)


def test_words_lie_where_no_text_is(fitted):
    made, shapes, appearances, states = fitted
    told = made.descriptions(shapes, appearances)
    said = made(told)
    assert (states @ made.unused).abs().max() < 1e-3 * states.abs().max()
    torch.testing.assert_close(said @ made.unused, told, atol=1e-4, rtol=1e-4)  # nothing is lost


def test_words_of_pictures_are_their_peoples():
    sitters = words.Sitters([{"identity": number} for number in (8, 3, 8)], words.Words(words.shape_size()))
    sitters.fit()
    sitters.words.unused[:60].copy_(torch.eye(60))
    sitters.describe()
    said = sitters.words_of(torch.tensor([0, 1, 2]), 1.0, seeded(0, 0))
    assert torch.equal(said[0], said[2]) and not torch.equal(said[0], said[1])
    assert not sitters.words_of(torch.tensor([0, 1, 2]), 0.0, seeded(0, 0)).any()


def test_even_levels_weigh_by_their_running_mean():
    weigh = levels.Even()
    steps, sigmas = torch.tensor([10, 30, 990]), torch.ones(3)
    weights = weigh(steps, sigmas, torch.tensor([0.2, 0.4, 0.01]))
    torch.testing.assert_close(weights, 1 / torch.tensor([0.3, 0.3, 0.01]))
    for _ in range(1000):
        weigh(steps[2:], sigmas[2:], torch.tensor([0.05]))
    torch.testing.assert_close(
        weigh(steps[2:], sigmas[2:], torch.tensor([0.05])), torch.tensor([20.0]), rtol=1e-4, atol=0
    )


def test_min_snr_is_what_the_paper_says():
    sigmas = torch.tensor([0.1, 0.4, 3.0])
    snr = 1 / sigmas**2
    expected = snr.clamp(max=levels.SNR_LIMIT) / snr
    torch.testing.assert_close(levels.MinSnr()(torch.tensor([1, 2, 3]), sigmas, torch.ones(3)), expected)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(denoising, "UNET", architecture.UNET | dict(model_channels=32))
    torch.manual_seed(0)
    model = denoising.Denoiser(tokenize(CAPTIONS).unique())
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model.eval()


def noun_attention(model, tokens, faces):
    """The mean share of attention that nouns have on faces, over all layers, as `Watch` sees it."""
    seen = []

    class Share(nouns.Wanted):
        def add(self, queries, change, out, face):
            wanted = 0.0 if (change == nouns.MOST).all() else change  # logit(share) is 0 at one half
            seen.append((torch.sigmoid(-wanted / face[:, None].clamp(min=0.5)) * face[:, None]).sum() / face.sum() / 4)

    layers = [Share() for name, _ in model.unet.named_modules() if name.endswith("attn2")]
    options = {"optimized_attention_override": nouns.Watch(layers, faces, words.noun_columns(tokens), 0.5)}
    noisy = torch.randn(len(tokens), 4, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.unet(noisy, torch.full((len(tokens),), 500), context=model.text(tokens), transformer_options=options)
    return float(torch.stack(seen).mean())


def test_nouns_get_their_share_on_faces(model, monkeypatch):
    """More than twice the attention in the mean, and what the model gives hardly moves."""
    monkeypatch.setattr(nouns, "LEAST", -20.0)
    monkeypatch.setattr(nouns, "MOST", 20.0)
    tokens = tokenize(CAPTIONS[:3])
    faces = torch.zeros(3, 1, 256, 256)
    faces[:, :, 64:192, 64:192] = 1
    latents = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    before = noun_attention(model, tokens, faces)
    nouns.look_at_nouns(model, latents, faces, tokens, 0.5)
    assert noun_attention(model, tokens, faces) > 2 * before


def test_the_noun_direction_reads_nouns_alone():
    states = torch.randn(6, 77, 128, generator=torch.Generator().manual_seed(3))
    columns = torch.tensor([1, 2, 3, 4, 5, 6])
    rows = torch.arange(6)
    states[rows, columns] += 3.0  # what all nouns have in common
    read = states @ nouns.noun_direction(states, columns)
    at = read[rows, columns]
    read[rows, columns] = 0
    assert at.min() > 0.8 and read.abs().mean() < 0.1


def test_readers_change_nothing_at_first_and_merge(model):
    """For states that have nothing in the unused directions; then words are read, and one projection does both."""
    random = torch.Generator().manual_seed(4)
    unused, _ = torch.linalg.qr(torch.randn(128, 60, generator=random))
    states = torch.randn(2, 77, 128, generator=random)
    states -= states @ unused @ unused.T
    noisy, steps = torch.randn(2, 4, 32, 32, generator=random), torch.tensor([500, 900])
    told = words.with_words(states, torch.randn(2, 60, generator=random) @ unused.T, torch.tensor([3, 5]))
    with torch.no_grad():
        before = model.predict(noisy, steps, states)
        readers = reading.install(model, 60)
        for reader in readers:
            reader.lay(unused, keep=False)
        assert len(readers) == 2 * 7 and not any(value.requires_grad for value in model.text.parameters())
        torch.testing.assert_close(model.predict(noisy, steps, states), before, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(model.predict(noisy, steps, told), before, atol=1e-4, rtol=1e-3)
        for reader in readers:
            reader.learnt.normal_(generator=random)
        changed = model.predict(noisy, steps, told)
        one = reading.merged(model)
        torch.testing.assert_close(one.predict(noisy, steps, told), changed, atol=1e-4, rtol=1e-3)
        again = copy.deepcopy(one)  # goes on where it was
        for reader in reading.install(again, 60):
            reader.lay(unused, keep=True)
        torch.testing.assert_close(again.predict(noisy, steps, told), changed, atol=1e-4, rtol=1e-3)
    assert (changed - before).abs().max() > 0.01
    assert not any(isinstance(layer, reading.Reader) for layer in one.modules())


def test_others_are_somebody_else_of_the_same_noun():
    assert reading.others(torch.tensor([4, 4, 7, 9]), ["man", "man", "woman", "man"]).tolist() == [9, 9, 7, 4]


def test_the_share_explained_is_one_for_the_truth_and_none_for_the_mean():
    true = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(share_explained(true, true), torch.ones(3))
    torch.testing.assert_close(share_explained(true.mean(0).expand_as(true), true), torch.zeros(3), atol=1e-5, rtol=0)
    half = true.mean(0) + (true - true.mean(0)) / 2  # a half of each deviation leaves a quarter of the variance
    torch.testing.assert_close(share_explained(half, true), torch.full((3,), 0.75), atol=1e-5, rtol=0)
