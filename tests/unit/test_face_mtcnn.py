"""The built-in detector: its networks against NumPy, its suppression against loops, its sight on real photographs."""

from __future__ import annotations

from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from omniportrait.models.faces import mtcnn
from omniportrait.models.faces.detector import ORDERS, arrange, find_faces
from omniportrait.models.faces.mtcnn import BuiltInDetector, load_weights, moved, pyramid, squared, without_nested
from PIL import Image

# Read off enlarged prints of the two photographs, by eye: eyes (pupils), tip of the nose, corners of the mouth.
ASTRONAUT = ((203.8, 101.1), (246.6, 103.1), (223.5, 126.9), (203.8, 140.0), (244.2, 141.1))
GRACE_HOPPER = ((222.7, 189.4), (306.1, 185.3), (267.0, 234.7), (228.2, 281.2), (307.8, 277.1))


def photograph(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels)).float().div(255).permute(2, 0, 1).contiguous()


@pytest.fixture(scope="module")
def astronaut() -> torch.Tensor:
    return photograph(skimage.data.astronaut())


@pytest.fixture(scope="module")
def grace_hopper() -> torch.Tensor:
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return photograph(np.asarray(Image.open(file).convert("RGB")))


# The three networks once more, in NumPy and float64, from the table in the paper.


def conv(weights: dict, layer: str, x: np.ndarray) -> np.ndarray:
    kernel, bias, slope = (weights[f"{layer}.{kind}"].double().numpy() for kind in ("weight", "bias", "slope"))
    windows = sliding_window_view(x, kernel.shape[-2:], axis=(1, 2))
    y = np.einsum("chwij,ocij->ohw", windows, kernel) + bias[:, None, None]
    return np.where(y > 0, y, y * slope[:, None, None])


def pool(x: np.ndarray, side: int, stride: int) -> np.ndarray:
    """Maximum over windows, the last of which may hang over the edge."""
    starts = [range(0, max(1, -(-(n - side) // stride) * stride + 1), stride) for n in x.shape[1:]]
    rows = [[x[:, r : r + side, c : c + side].max((1, 2)) for c in starts[1]] for r in starts[0]]
    return np.stack(rows).transpose(2, 0, 1)


def dense(weights: dict, layer: str, x: np.ndarray) -> np.ndarray:
    return weights[f"{layer}.weight"].double().numpy() @ x + weights[f"{layer}.bias"].double().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(0)


def refined(weights: dict, net: str, patch: np.ndarray) -> tuple[float, np.ndarray, np.ndarray | None]:
    x = pool(conv(weights, f"{net}.conv1", patch), 3, 2)
    x = conv(weights, f"{net}.conv3", pool(conv(weights, f"{net}.conv2", x), 3, 2))
    if net == "onet":
        x = conv(weights, "onet.conv4", pool(x, 2, 2))
    x = dense(weights, f"{net}.dense", x.reshape(-1))
    x = np.where(x > 0, x, x * weights[f"{net}.dense.slope"].double().numpy())
    points = dense(weights, "onet.points", x) if net == "onet" else None
    return softmax(dense(weights, f"{net}.face", x))[1], dense(weights, f"{net}.box", x), points


def test_p_net_agrees_with_numpy():
    weights = load_weights()
    picture = torch.rand(3, 27, 34, generator=torch.Generator().manual_seed(5)) * 2 - 1
    face, shift = mtcnn.p_net(weights, picture[None])
    x = pool(conv(weights, "pnet.conv1", picture.double().numpy()), 2, 2)
    x = conv(weights, "pnet.conv3", conv(weights, "pnet.conv2", x))
    heads = {
        head: np.einsum("chw,oc->ohw", x, weights[f"pnet.{head}.weight"].double().numpy()[:, :, 0, 0])
        + weights[f"pnet.{head}.bias"].double().numpy()[:, None, None]
        for head in ("face", "box")
    }
    np.testing.assert_allclose(face.numpy(), softmax(heads["face"])[1], atol=1e-5)
    np.testing.assert_allclose(shift.numpy(), heads["box"], atol=1e-5)


@pytest.mark.parametrize(("net", "side"), [("rnet", 24), ("onet", 48)])
def test_r_net_and_o_net_agree_with_numpy(net, side):
    weights = load_weights()
    patches = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(6)) * 2 - 1
    score, shift, points = mtcnn._judge(weights, net, patches)
    for index, patch in enumerate(patches.double().numpy()):
        expected = refined(weights, net, patch)
        np.testing.assert_allclose(float(score[index]), expected[0], atol=1e-5)
        np.testing.assert_allclose(shift[index].numpy(), expected[1], atol=1e-4)
        if net == "onet":
            np.testing.assert_allclose(points[index].numpy().T.reshape(-1), expected[2], atol=1e-4)


def test_pixels_enter_the_networks_as_they_were_trained(monkeypatch):
    """MTCNN's range: (value in 0..255 - 127.5) / 128."""
    seen = []
    monkeypatch.setattr(mtcnn, "propose", lambda weights, picture, *sizes: seen.append(picture) or torch.zeros(0, 4))
    assert BuiltInDetector().detect(torch.tensor([0.0, 0.5, 1.0])[:, None, None].expand(3, 40, 40)) == []
    assert seen[0][:, 0, 0].tolist() == pytest.approx([-127.5 / 128, 0.0, 127.5 / 128])


def test_weights_name_their_source_and_licence():
    from safetensors import safe_open

    with safe_open(str(mtcnn.WEIGHTS), "pt") as file:
        assert "facenet-pytorch" in file.metadata()["source"] and "MIT" in file.metadata()["license"]
    assert (mtcnn.WEIGHTS.parent / "LICENSE.txt").read_text().count("MIT License") == 1


@pytest.mark.parametrize(("height", "width"), [(20, 20), (19, 300), (1024, 700), (47, 48), (1, 1)])
def test_pyramid_reaches_from_the_smallest_face_to_the_whole_picture(height, width):
    scales = pyramid(height, width)
    if min(height, width) < 20:
        assert scales == []
        return
    assert scales[0] == pytest.approx(12 / 20)
    assert all(b / a == pytest.approx(0.709) for a, b in zip(scales, scales[1:], strict=False))
    assert min(height, width) * scales[-1] >= 12 > min(height, width) * scales[-1] * 0.709


def test_the_second_look_is_a_mean_over_shifted_zoomed_and_mirrored_frames():
    """Frames cut and averaged down by NumPy, judged by the networks above."""
    weights = load_weights()
    picture = torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(8)) * 2 - 1
    boxes = torch.tensor([[80.0, 60.0, 120.0, 100.0], [70.0, 90.0, 118.0, 122.0]])
    looks = ((0, 0), (0, 0), (0, 0), (0, 0), (0.08, 0), (-0.08, 0), (0, 0.08), (0, -0.08))
    zooms = (1, 0.85, 1.2, 1.4, 1.1, 1.1, 1.1, 1.1)
    for box, trust in zip(boxes.tolist(), mtcnn.second_look(weights, picture, boxes).tolist(), strict=True):
        side = max(box[2] - box[0], box[3] - box[1])
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        seen = []
        for zoom, (dx, dy) in zip(zooms, looks, strict=True):
            left, top = x + dx * side - zoom * side / 2, y + dy * side - zoom * side / 2
            x0, y0, x1, y1 = (round(v) for v in (left, top, left + zoom * side, top + zoom * side))
            patch = F.adaptive_avg_pool2d(picture[:, y0:y1, x0:x1], 48).double().numpy()
            seen += [refined(weights, "onet", patch)[0], refined(weights, "onet", patch[..., ::-1])[0]]
        assert trust == pytest.approx(sum(seen) / 16, abs=1e-5)


def test_boxes_are_moved_and_squared():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert moved(boxes, torch.tensor([[0.5, -0.25, 0.1, 0.05]])).tolist() == [[20.0, 10.0, 32.0, 62.0]]
    assert squared(boxes).tolist() == [[0.0, 20.0, 40.0, 60.0]]


def test_nested_boxes_are_dropped_as_a_loop_would():
    generator = torch.Generator().manual_seed(7)
    corner, size = torch.rand(60, 2, generator=generator) * 100, torch.rand(60, 2, generator=generator) * 60 + 5
    boxes, score = torch.cat([corner, corner + size], 1), torch.rand(60, generator=generator)
    kept: list[int] = []
    for index in sorted(range(60), key=lambda i: -float(score[i])):
        a = boxes[index].tolist()
        for other in kept:
            b = boxes[other].tolist()
            common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
            if common > 0.7 * smaller:
                break
        else:
            kept.append(index)
    assert 1 < len(kept) < 60
    assert without_nested(boxes, score, 0.7) == kept
    assert without_nested(boxes[:0], score[:0], 0.7) == []


@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("name", "points"), [("astronaut", ASTRONAUT), ("grace_hopper", GRACE_HOPPER)])
def test_eyes_nose_and_mouth_lie_where_a_person_sees_them(name, points, size, request):
    photo = request.getfixturevalue(name)
    photo = torch.nn.functional.interpolate(photo[None], scale_factor=size, mode="bilinear", antialias=True)[0]
    (face,), turns = find_faces(BuiltInDetector(), photo)
    assert turns == 0 and face.score > 0.99
    width = (face.box[2] - face.box[0]) / size
    found, seen = np.array(face.landmarks) / size, np.array(points)
    assert np.abs(found[:2] - seen[:2]).max() < 0.05 * width  # the eyes
    assert np.abs(found - seen).max() < 0.07 * width
    for x, y in found * size:
        assert face.box[0] < x < face.box[2] and face.box[1] < y < face.box[3]


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("name", ["astronaut", "grace_hopper", "grace_hopper mirrored"])
def test_a_turned_photograph_is_turned_back(name, turns, request, caplog):
    """Grace Hopper's lying head has an upright find of 0.90."""
    photo = request.getfixturevalue(name.split()[0])
    photo = photo.flip(-1) if "mirrored" in name else photo
    (upright,), _ = find_faces(BuiltInDetector(), photo)
    (face,), back = find_faces(BuiltInDetector(), torch.rot90(photo, turns, (-2, -1)))
    assert (turns + back) % 4 == 0
    assert face.box == pytest.approx(upright.box, abs=2)
    assert "not upright" in caplog.text


def motorcycle() -> torch.Tensor:
    return photograph(np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "motorcycle_left.png")))


def test_a_wheel_is_doubtful_and_a_small_face_beside_it_is_sure(astronaut):
    scene = motorcycle()
    assert not any(face.sure for face in find_faces(BuiltInDetector(), scene)[0])
    head = F.interpolate(astronaut[None, :, 0:320, 90:370], (248, 217), mode="bicubic", antialias=True)[0].clamp(0, 1)
    scene[:, 10:258, 20:237] = head
    faces, turns = find_faces(BuiltInDetector(), scene)
    assert turns == 0 and len(faces) > 1
    assert [20 < face.centre[0] < 237 and 10 < face.centre[1] < 258 for face in faces if face.sure] == [True]
    for order in ORDERS:
        assert arrange(faces, order, *scene.shape[-2:])[0].sure


@pytest.mark.parametrize("size", [18, 24, 40])
def test_tiny_faces_of_a_group_are_sure(astronaut, grace_hopper, size):
    scene = F.interpolate(motorcycle()[None], (691, 1024), mode="bicubic", antialias=True)[0].clamp(0, 1)
    heads = [(astronaut[:, 0:320, 90:370], 116), (grace_hopper[:, 20:480, 80:460], 226)]
    for number in range(6):
        head, face = heads[number % 2]
        head = head.flip(-1) if number > 2 else head
        height, width = (round(side * size / face) for side in head.shape[-2:])
        small = F.interpolate(head[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
        scene[:, 40 : 40 + height, 20 + 160 * number : 20 + 160 * number + width] = small
    faces, _ = find_faces(BuiltInDetector(), scene)
    sure = sorted(face.centre[0] for face in faces if face.sure)
    assert len(sure) == 6 and all(20 + 160 * n < x < 20 + 160 * n + 2 * size for n, x in enumerate(sure))


def test_a_photograph_cut_to_the_face_is_framed_first(grace_hopper, caplog):
    tight = grace_hopper[:, 150:310, 180:350]
    (face,), turns = find_faces(BuiltInDetector(), tight)
    expected = np.array(GRACE_HOPPER) - (180, 150)
    assert turns == 0 and "margin" in caplog.text
    assert np.abs(np.array(face.landmarks) - expected).max() < 14


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket", "gravel"])
def test_pictures_without_a_person_have_no_face(name):
    pixels = getattr(skimage.data, name)()
    pixels = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels
    assert find_faces(BuiltInDetector(), photograph(pixels)) == ([], 0)


def test_detection_leaves_global_state_alone(astronaut):
    torch.manual_seed(11)
    before = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()
    with torch.inference_mode():
        inside = BuiltInDetector().detect(astronaut)
    outside = BuiltInDetector().detect(astronaut)
    after = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert inside == outside
