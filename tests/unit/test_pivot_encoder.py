"""The Pivot ID Encoder against plain matrix products in float64, with towers of a few thousand weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omniportrait.models.pivot.encoder import CLIP_MEAN, CLIP_STD, PivotConfig, PivotEncoder, TowerConfig, prepare_face
from omniportrait.models.pivot.handle import fused

TOWER = TowerConfig(image_size=28, patch_size=14, width=32, layers=3, head_width=8, mlp_ratio=2.0)
FAMILIES = {"sd15": (768,), "sdxl": (768, 1280)}


def encoder(family: str = "sd15", fusion: str = "linear", seed: int = 0) -> PivotEncoder:
    torch.manual_seed(seed)
    return PivotEncoder(PivotConfig(family, FAMILIES[family], TOWER, fusion)).eval()


def trained(family: str, fusion: str, seed: int = 1) -> PivotEncoder:
    """Every weight moved away from its start."""
    made = encoder(family, fusion, seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fusion", ["linear", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_encoder_returns_the_text_bit_for_bit(family, fusion, dtype):
    made = encoder(family, fusion)
    text = (3 * torch.randn(5, sum(FAMILIES[family]))).to(dtype)
    with torch.no_grad():
        mixed = made(torch.randn(5, 3, 28, 28), text)
        assert made.reference(torch.randn(1, 3, 28, 28)).abs().max() > 0.01  # it is the fusion that ignores the face
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, text.float())
    assert torch.equal(mixed.to(dtype), text)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_encoder_learns_from_the_face(family):
    """The start is no dead end: the gradient reaches the fusion's half of the face at once."""
    made = encoder(family)
    width = sum(FAMILIES[family])
    made(torch.randn(2, 3, 28, 28), torch.randn(2, width)).square().sum().backward()
    assert made.fusion.weight.grad[:, :width].abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_fusion_is_one_matrix_over_face_and_text(family):
    made = trained(family, "linear")
    width = sum(FAMILIES[family])
    reference, text = torch.randn(3, width), torch.randn(3, width)
    weight, bias = made.fusion.weight.detach().double(), made.fusion.bias.detach().double()
    pairs = zip(reference.double(), text.double(), strict=True)
    expected = torch.stack([weight[:, :width] @ r + weight[:, width:] @ t + bias for r, t in pairs])
    torch.testing.assert_close(made.fuse(reference, text).detach().double(), expected, rtol=1e-4, atol=1e-4)


def test_mlp_fusion_adds_a_perceptron_to_the_text():
    made = trained("sd15", "mlp")
    reference, text = torch.randn(3, 768), torch.randn(3, 768)
    fusion = made.fusion
    both = torch.cat([reference, text], 1).double()
    normed = (both - both.mean(1, keepdim=True)) / (both.var(1, unbiased=False, keepdim=True) + fusion.norm.eps).sqrt()
    normed = normed * fusion.norm.weight.double() + fusion.norm.bias.double()
    hidden = normed @ fusion.inner.weight.double().T + fusion.inner.bias.double()
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = text.double() + hidden @ fusion.outer.weight.double().T + fusion.outer.bias.double()
    torch.testing.assert_close(made.fuse(reference, text).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_reference_is_each_projection_of_the_normed_class_token():
    """The tower's own blocks one by one, instead of its forward."""
    made = trained("sdxl", "linear")
    tower, pixels = made.tower, torch.randn(2, 3, 28, 28)
    patches = tower.conv1(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat([tower.class_embedding.expand(2, 1, -1), patches], 1) + tower.positional_embedding
    tokens = tower.ln_pre(tokens)
    for block in tower.transformer.resblocks:
        tokens = block(tokens)
    pooled = tower.ln_post(tokens[:, 0])
    expected = torch.cat([pooled @ made.projections[0].weight.T, pooled @ made.projections[1].weight.T], 1)
    assert expected.shape == (2, 2048)
    torch.testing.assert_close(made.reference(pixels), expected, rtol=1e-4, atol=1e-5)


def test_a_half_precision_tower_keeps_the_fusion_in_float32():
    made = trained("sd15", "linear")
    pixels, text = torch.randn(1, 3, 28, 28), torch.randn(1, 768)
    with torch.no_grad():
        full = made(pixels, text)
        made.tower.to(torch.bfloat16)
        half = made(pixels, text)
    assert half.dtype == torch.float32 and made.fusion.weight.dtype == torch.float32
    assert 0 < (half - full).norm() / full.norm() < 0.05


def test_autocast_does_not_reach_projection_and_fusion():
    made = encoder("sd15")
    text = torch.randn(2, 768)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        mixed = made(torch.randn(2, 3, 28, 28), text)
    assert torch.equal(mixed, text)


def test_text_of_another_family_is_refused_with_both_widths():
    with pytest.raises(ValueError, match="2048 wide.*768 wide"):
        encoder("sd15").fuse(torch.randn(1, 768), torch.randn(1, 2048))


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("sd3", (768,)), "base family"),
        (("sdxl", (768,)), "text widths of sdxl"),
        (("sd15", (768,), TOWER, "sum"), "fusion"),
    ],
)
def test_a_config_that_cannot_be_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        PivotConfig(*arguments)


def test_train_layers_frees_the_last_blocks_only():
    def learning(layers: int | None) -> set[str]:
        made = encoder("sdxl")
        made.train_layers(layers)
        return {name for name, weight in made.named_parameters() if weight.requires_grad}

    everything = {name for name, _ in encoder("sdxl").named_parameters()}
    behind = {name for name in everything if not name.startswith("tower.")}
    last = {name for name in everything if name.startswith("tower.transformer.resblocks.2.")}
    post = {name for name in everything if name.startswith("tower.ln_post.")}
    assert behind and last and post
    assert learning(None) == everything
    assert learning(0) == behind
    assert learning(1) == behind | last | post
    assert learning(99) == {n for n in everything if not n.startswith("tower.") or "resblocks" in n} | post


def clip_checkpoint(width: int = 32, out: int = 768) -> dict[str, torch.Tensor]:
    """What open_clip saves: the image tower under `visual.` with its projection, and a text tower beside it."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(5)
    visual = VisionTransformer(28, 14, width, 3, width // 8, 2.0, output_dim=out)
    return {f"visual.{key}": value for key, value in visual.state_dict().items()} | {"logit_scale": torch.ones(())}


def test_a_pretrained_tower_gives_open_clips_own_feature():
    """With the projection of its shape taken over, e_ref is what open_clip calls the image's embedding."""
    from open_clip.transformer import VisionTransformer

    state = clip_checkpoint()
    original = VisionTransformer(28, 14, 32, 3, 4, 2.0, output_dim=768).eval()
    original.load_state_dict({key.removeprefix("visual."): v for key, v in state.items() if key.startswith("visual.")})
    made = encoder("sdxl")
    second = made.projections[1].weight.clone()
    made.load_pretrained_tower(state)
    pixels = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(made.reference(pixels)[:, :768], original(pixels), rtol=1e-4, atol=1e-5)
    assert torch.equal(made.projections[1].weight, second)  # 1280 wide: CLIP has none for it
    assert "visual.proj" in state


@pytest.mark.parametrize("state", [{}, {"text.weight": torch.zeros(2)}, clip_checkpoint(width=64)])
def test_weights_of_another_tower_are_refused(state):
    with pytest.raises(ValueError, match="do not fit the image tower|must be open_clip's"):
        encoder().load_pretrained_tower(state)


def ramp(side: int) -> torch.Tensor:
    """[1, side, side, 3] whose red is the column and green the row, as a share of the side."""
    middle = (torch.arange(side) + 0.5) / side
    rows, columns = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack([columns, rows, torch.zeros_like(rows)], -1)[None]


def seen(pixels: torch.Tensor, side: int) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of what `prepare_face` cut from `ramp(side)`, read off the picture's inner slope."""
    size = pixels.shape[-1]
    red = (pixels[0, 0] * CLIP_STD[0] + CLIP_MEAN[0]).mean(0) * side
    green = (pixels[0, 1] * CLIP_STD[1] + CLIP_MEAN[1]).mean(1) * side
    ends = []
    for line in (red, green):
        slope = (line[size * 3 // 4] - line[size // 4]) / (size * 3 // 4 - size // 4)
        start = line[size // 4] - slope * (size // 4 + 0.5)
        ends.append((float(start), float(start + slope * size)))
    (x0, x1), (y0, y1) = ends
    return x0, y0, x1, y1


@pytest.mark.parametrize(
    "box, expected",
    [
        ((50, 60, 110, 160), (10, 40, 150, 180)),  # 1.4 x 100 around (80, 110)
        ((0, 0, 50, 40), (0, 0, 70, 70)),  # would begin outside: moved in, same size
        ((150, 170, 200, 200), (130, 130, 200, 200)),
        ((10, 10, 190, 190), (0, 0, 200, 200)),  # 252 is more than there is
        (None, (0, 0, 200, 200)),
    ],
)
def test_the_tower_sees_a_square_of_1_4_faces_inside_the_crop(box, expected):
    pixels = prepare_face(ramp(200), 64, face_box=box)
    assert pixels.shape == (1, 3, 64, 64)
    assert seen(pixels, 200) == pytest.approx(expected, abs=0.5)


def test_the_mask_stands_in_for_the_box_and_the_box_wins():
    mask = torch.zeros(1, 200, 200)
    mask[:, 60:160, 50:110] = 1
    assert seen(prepare_face(ramp(200), 64, mask), 200) == pytest.approx((10, 40, 150, 180), abs=0.5)
    boxed = prepare_face(ramp(200), 64, mask, (0, 0, 50, 40))
    assert seen(boxed, 200) == pytest.approx((0, 0, 70, 70), abs=0.5)
    empty = prepare_face(ramp(200), 64, torch.zeros(1, 200, 200))
    assert torch.equal(empty, prepare_face(ramp(200), 64))


@pytest.mark.parametrize("side, size", [(20, 28), (224, 224), (900, 56)])
def test_a_plain_colour_comes_out_as_clips_normalised_constant(side, size):
    colour = torch.tensor([0.2, 0.5, 0.9])
    pixels = prepare_face(colour.expand(1, side, side, 3), size, face_box=(5, 5, 15, 15))
    expected = torch.tensor([(c - m) / s for c, m, s in zip(colour.tolist(), CLIP_MEAN, CLIP_STD, strict=True)])
    torch.testing.assert_close(pixels, expected.view(1, 3, 1, 1).expand(1, 3, size, size), rtol=0, atol=1e-5)


def test_fine_stripes_do_not_alias():
    """White lines at every third pixel, shrunk eightfold, are an even grey and not new stripes."""
    stripes = (torch.arange(448) % 3 == 0).float().view(1, 1, -1, 1).expand(1, 448, 448, 3)
    pixels = prepare_face(stripes, 56)
    brightness = pixels[0, 0] * CLIP_STD[0] + CLIP_MEAN[0]
    assert (brightness - 1 / 3).abs().max() < 0.05


def test_the_gradient_reaches_the_seen_square_and_nothing_else():
    crop = torch.rand(1, 100, 100, 3, requires_grad=True)
    prepare_face(crop, 56, face_box=(20, 20, 60, 60)).sum().backward()
    touched = crop.grad[0].abs().sum(-1) > 0
    inside = torch.zeros(100, 100, dtype=torch.bool)
    inside[12:68, 12:68] = True
    assert torch.equal(touched, inside)


def test_several_photographs_are_one_direction_at_their_mean_length():
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(4, 12, generator=generator) * torch.tensor([[1.0], [5.0], [0.2], [30.0]])
    values = rows.double().numpy()
    lengths = np.sqrt((values**2).sum(1))
    expected = sum(row / length for row, length in zip(values, lengths, strict=True))
    expected *= lengths.mean() / np.sqrt((expected**2).sum())
    np.testing.assert_allclose(fused(rows)[0].numpy(), expected, rtol=1e-5)
    assert torch.equal(fused(rows[:1]), rows[:1])
    assert bool(fused(torch.zeros(3, 5)).isfinite().all())
