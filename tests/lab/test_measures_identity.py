"""lab/measures: the face embedder against plain numpy, its alignment against dlib's frame, the statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omniportrait.lab.measures.separation import Separation, auc, best_threshold
from omniportrait.models.faces.embedder import (
    CHIP,
    WEIGHTS,
    FaceEmbedder,
    _Block,
    align,
    find_landmarks,
    read_weights,
    template,
)
from omniportrait.models.faces.geometry import moved, similarity


@pytest.fixture(scope="module")
def embedder() -> FaceEmbedder:
    return FaceEmbedder()


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(str(WEIGHTS))


def dequantised(stored, name) -> np.ndarray:
    values = stored[name].astype(np.float64)
    if stored[name].dtype == np.uint8:
        scale, least = stored[name + ".range"].astype(np.float64)
        return values * scale + least
    return values


def convolved(stored, layer: str, x: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """One stored layer on x [C, H, W] by sums over windows: scale · (kernel * x + bias) + shift."""
    kernel = dequantised(stored, f"{layer}.kernel")
    bias, scale, shift = (dequantised(stored, f"{layer}.{kind}")[:, None, None] for kind in ("bias", "scale", "shift"))
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    side = kernel.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))[:, ::stride, ::stride]
    return scale * (np.einsum("chwij,ocij->ohw", windows, kernel, optimize=True) + bias) + shift


def naive_block(stored, block: int, x: np.ndarray) -> np.ndarray:
    """A residual block as dlib defines it: the sum is as large as the larger summand, the smaller one stands at its
    top left among zeros."""
    halve = dequantised(stored, f"blocks.{block}.first.kernel").shape[0] != x.shape[0] or block == 13
    y = np.maximum(convolved(stored, f"blocks.{block}.first", x, 2 if halve else 1, 0 if halve else 1), 0)
    y = convolved(stored, f"blocks.{block}.second", y, 1, 1)
    if halve:
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = x[:, : 2 * rows, : 2 * columns].reshape(len(x), rows, 2, columns, 2).mean((2, 4))
    total = np.zeros([max(a, b) for a, b in zip(x.shape, y.shape, strict=True)])
    for part in (x, y):
        total[tuple(slice(size) for size in part.shape)] += part
    return np.maximum(total, 0)


def test_embedder_equals_a_naive_computation(embedder, stored):
    """All 29 layers from the stored bytes in float64, without torch: covers dequantising, folding, strides, padding."""
    chip = np.random.default_rng(0).uniform(0, 1, (3, CHIP, CHIP)).astype(np.float32)
    x = (chip.astype(np.float64) * 255 - np.array([122.782, 117.001, 104.298])[:, None, None]) / 256
    x = np.maximum(convolved(stored, "stem", x, 2, 0), 0)
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))
    sides = []
    for block in range(14):
        x = naive_block(stored, block, x)
        sides.append(x.shape[-1])
    wanted = dequantised(stored, "head.weight") @ x.mean((1, 2))
    assert sides == [35, 35, 35, 17, 17, 17, 17, 8, 8, 8, 4, 4, 4, 2]
    found = embedder(torch.from_numpy(chip)[None])[0].numpy()
    assert found.shape == (128,)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_halving_an_even_side_completes_with_zeros_and_does_not_broadcast():
    """A side of 4: the convolution gives 1, the shortcut 2. Broadcasting would add the one value everywhere."""
    block = _Block(1, 1, halve=True)
    torch.nn.init.zeros_(block.first.weight), torch.nn.init.zeros_(block.first.bias)
    torch.nn.init.zeros_(block.second.weight), torch.nn.init.constant_(block.second.bias, 10.0)
    out = block(torch.ones(1, 1, 4, 4))
    assert torch.equal(out[0, 0].detach(), torch.tensor([[11.0, 1.0], [1.0, 1.0]]))


def test_weights_are_eight_bit_and_name_their_source():
    from safetensors import safe_open

    with safe_open(str(WEIGHTS), "pt") as opened:
        card, names = opened.metadata(), list(opened.keys())
    assert WEIGHTS.stat().st_size < 6.6e6
    assert "face-api 1.7.15" in card["source"] and card["license"].startswith("MIT")
    assert "MIT License" in WEIGHTS.with_suffix(".LICENSE").read_text()
    assert sum(name.endswith(".kernel") for name in names) == 29
    assert all(tensor.dtype == torch.float32 for tensor in read_weights(WEIGHTS).values())


def test_gradient_by_finite_differences(embedder):
    """In float64 and along a random direction; rectifiers make it piecewise smooth, so the step is tiny."""
    model = FaceEmbedder().double()
    random = torch.Generator().manual_seed(3)
    chips = torch.rand(1, 3, CHIP, CHIP, generator=random, dtype=torch.float64).requires_grad_(True)
    direction = torch.randn(chips.shape, generator=random, dtype=torch.float64)
    goal = torch.randn(1, 128, generator=random, dtype=torch.float64)
    (model(chips) * goal).sum().backward()
    with torch.no_grad():
        step = 1e-7
        there, back = ((model(chips + way * step * direction) * goal).sum() for way in (1, -1))
    assert ((there - back) / (2 * step)).item() == pytest.approx((chips.grad * direction).sum().item(), rel=1e-4)
    assert all(not parameter.requires_grad for parameter in embedder.parameters())


def test_gradient_reaches_the_picture_through_the_alignment(embedder):
    picture = torch.rand(1, 3, 200, 220, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    landmarks = template()[None] * 0.8 + 30
    embedder.embed(picture, landmarks).square().sum().backward()
    touched = picture.grad[0].abs().sum(0) > 0
    assert touched[30:150, 30:150].float().mean() > 0.9 and not touched[160:, 160:].any()


DLIB_CORNERS = np.array(
    [
        (0.8595674595992, 0.2134981538014),
        (0.6460604764104, 0.2289674387677),
        (0.1205750620789, 0.2137274526848),
        (0.3340850613712, 0.2290642403242),
    ]
)
"""The eyes' corners in the frame of dlib's five-point get_face_chip."""


def test_template_lies_in_dlibs_frame():
    """Eye centres between the corners that dlib itself aligns by; the whole symmetric about dlib's middle."""
    right, left = DLIB_CORNERS[:2].mean(0), DLIB_CORNERS[2:].mean(0)
    unit = (template().numpy() / CHIP * 1.5) - 0.25
    np.testing.assert_allclose(unit[:2], [left, right], atol=0.012)
    middle = 0.490127
    np.testing.assert_allclose(unit[[0, 3], 0] + unit[[1, 4], 0], 2 * middle, atol=1e-4)
    assert unit[2, 0] == pytest.approx(middle, abs=1e-5) and 0.5 < unit[2, 1] < 0.63 < unit[3, 1]


@pytest.mark.parametrize("angle, size, at", [(0.0, 110, (150, 130)), (0.4, 90, (200, 130)), (-0.5, 60, (90, 160))])
def test_alignment_brings_landmarks_onto_the_template(angle, size, at):
    """Dots painted at the landmarks of a turned, scaled face appear at the template's places."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    unit = (template().double().numpy() / CHIP * 1.5) - 0.25
    landmarks = torch.from_numpy(unit @ (size * turn).T + at)
    y, x = torch.meshgrid(torch.arange(320) + 0.5, torch.arange(360) + 0.5, indexing="ij")
    for index in range(5):
        dot = torch.exp(-((x - landmarks[index, 0]) ** 2 + (y - landmarks[index, 1]) ** 2) / 8).float()
        chip = align(dot.expand(1, 3, -1, -1), landmarks[None].float())[0, 0].double()
        places = torch.arange(CHIP, dtype=torch.float64)
        centre = torch.stack([(chip.sum(0) * places).sum(), (chip.sum(1) * places).sum()]) / chip.sum()
        assert (centre - template()[index]).norm() < 0.1


def test_a_large_face_is_averaged_not_picked():
    """A checkerboard of single pixels in a face six times the chip comes out grey."""
    checks = ((torch.arange(1200)[:, None] + torch.arange(1200)) % 2).float().expand(1, 3, -1, -1)
    chip = align(checks, template()[None] * 6.0 + 150)
    assert chip[..., 20:130, 20:130].sub(0.5).abs().max() < 0.05


def test_similarity_recovers_a_known_transform_and_never_mirrors():
    random = torch.Generator().manual_seed(1)
    points = torch.rand(2, 5, 2, generator=random, dtype=torch.float64) * 100
    known = torch.tensor([[[0.6, -0.8, 7.0], [0.8, 0.6, -3.0]], [[2.0, 0.5, 0.0], [-0.5, 2.0, 9.0]]]).double()
    torch.testing.assert_close(similarity(points, moved(points, known)), known)
    mirrored = points * torch.tensor([-1.0, 1.0])
    assert (torch.linalg.det(similarity(points, mirrored)[..., :2]) >= 0).all()


def test_similarity_is_the_least_squares_answer():
    """No small change of its four numbers brings noisy points nearer."""
    random = torch.Generator().manual_seed(2)
    source, target = torch.rand(2, 1, 5, 2, generator=random, dtype=torch.float64) * 100
    best = similarity(source, target)
    least = (moved(source, best) - target).square().sum()
    a, b, x, y = best[0, 0, 0], best[0, 1, 0], best[0, 0, 2], best[0, 1, 2]
    for change in torch.randn(20, 4, generator=random, dtype=torch.float64) * 0.01:
        p, q, r, s = torch.stack([a, b, x, y]) + change
        other = torch.stack([torch.stack([p, -q, r]), torch.stack([q, p, s])])[None]
        assert (moved(source, other) - target).square().sum() > least


def photographs() -> dict[str, torch.Tensor]:
    """Two real photographs of two people that scikit-image and matplotlib carry."""
    data = pytest.importorskip("skimage.data")
    cbook = pytest.importorskip("matplotlib.cbook")
    from PIL import Image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = np.array(Image.open(file).convert("RGB"))
    return {
        name: torch.from_numpy(p).permute(2, 0, 1).float() / 255
        for name, p in (("collins", data.astronaut()), ("hopper", hopper))
    }


def test_real_photographs_one_person_near_two_people_far(embedder):
    """The published cut of dlib's network is 0.6."""

    def embedding(picture):
        return embedder.embed(picture[None], find_landmarks(picture)[None])[0]

    first, second = photographs().values()
    for photo in (first, second):
        plain = embedding(photo)
        half = F.interpolate(photo[None], scale_factor=0.5, mode="area")[0]
        for variant in (photo.flip(-1), photo * 0.6, half, photo[:, 13:, 17:-5]):
            assert (embedding(variant) - plain).norm() < 0.3
    assert (embedding(first) - embedding(second)).norm() > 0.65


def test_no_face_gives_no_landmarks():
    assert find_landmarks(torch.full((3, 128, 128), 0.5)) is None


def test_auc_and_threshold_equal_brute_force():
    random = np.random.default_rng(5)
    low, high = random.normal(0, 1, 80).round(1), random.normal(1.2, 1.5, 60).round(1)
    wanted = np.mean([(h > lo) + 0.5 * (h == lo) for lo in low for h in high])
    first, second = torch.from_numpy(low), torch.from_numpy(high)
    assert auc(first, second) == pytest.approx(wanted, abs=1e-12)
    cut, accuracy = best_threshold(first, second)
    tried = [((low < c).mean() + (high > c).mean()) / 2 for c in np.arange(-5, 7, 0.05) + 0.025]
    assert accuracy == pytest.approx(max(tried), abs=1e-6)
    assert ((low < cut).mean() + (high > cut).mean()) / 2 == pytest.approx(accuracy, abs=1e-6)
    whole = Separation.of(first, second)
    assert whole.low.mean == pytest.approx(low.mean()) and whole.high.high == pytest.approx(np.quantile(high, 0.95))
