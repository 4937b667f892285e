"""Face Reference as ComfyUI runs it: schema, execute under inference mode, facexlib's files in models/facexlib."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import torch
from omniportrait.models.faces import facexlib_backend

DEFAULTS = {
    "order": "largest",
    "index": 0,
    "crop_factor": 2.0,
    "no_face": "stop",
    "mask_source": "auto",
    "detector": "auto",
}


@pytest.fixture
def node():
    from omniportrait.nodes.face_reference import FaceReferenceNode

    return FaceReferenceNode


@pytest.fixture
def facexlib_folder(tmp_path, monkeypatch):
    """An empty folder that ComfyUI knows as the only place of facexlib's files."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "facexlib", raising=False)
    (tmp_path / "facexlib").mkdir()
    yield tmp_path / "facexlib"
    folder_paths.folder_names_and_paths.pop("facexlib", None)


@pytest.fixture(scope="module")
def astronaut():
    return torch.from_numpy(np.array(skimage.data.astronaut())).float().div(255)[None]


def save_random(folder, name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """facexlib's own network class with random weights, saved as its published file; returns the state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if name in facexlib_backend.DETECTION_FILES:
            from facexlib.detection.retinaface import RetinaFace

            network = RetinaFace(facexlib_backend.DETECTION_FILES[name], device=torch.device("cpu"))
        elif "bisenet" in name:
            from facexlib.parsing.bisenet import BiSeNet

            network = BiSeNet(num_class=19)
        else:
            from facexlib.parsing.parsenet import ParseNet

            network = ParseNet(in_size=512, out_size=512, parsing_ch=19)
    state = network.state_dict()
    torch.save({prefix + key: value for key, value in state.items()}, folder / name)
    return state


def run_node(node, image, **inputs):
    """The outputs for one photograph, or batch; ComfyUI gives the node lists, and takes lists."""
    with torch.inference_mode():
        lists = node.execute(image=[image], **{name: [value] for name, value in {**DEFAULTS, **inputs}.items()}).result
    assert [len(values) for values in lists] == [1] * 6
    return tuple(values[0] for values in lists)


def test_schema_says_everything_that_people_need(node):
    schema = node.GET_SCHEMA()
    assert (schema.node_id, schema.display_name) == ("OmniPortraitFaceReference", "Face Reference")
    assert schema.category == "OmniPortrait" and schema.description
    assert [entry.id for entry in schema.inputs] == ["image", *DEFAULTS, "mask"]
    assert all(entry.tooltip for entry in schema.inputs) and all(entry.tooltip for entry in schema.outputs)
    assert [entry.get_io_type() for entry in schema.outputs] == [
        "FACE_REFERENCE",
        "IMAGE",
        "MASK",
        "IMAGE",
        "MASK",
        "BBOX",
    ]
    assert {entry.id: entry.default for entry in schema.inputs if entry.id in DEFAULTS} == DEFAULTS


def test_execute_gives_the_face_the_crop_the_mask_and_the_overview(node, astronaut, facexlib_folder):
    torch.manual_seed(0)
    random_state = torch.get_rng_state()
    reference, crop, mask, overview, photo_mask, boxes = run_node(node, astronaut)
    assert reference.source == "built-in, landmarks"
    assert torch.equal(crop, reference.crop) and torch.equal(mask, reference.mask)
    assert crop.shape == (1, 256, 256, 3) and overview.shape == (1, 512, 512, 3)
    assert 0.1 < float(mask.mean()) < 0.3
    ((x, y, width, height),) = boxes
    assert x < 203.8 < 246.6 < x + width and y < 101 < 141 < y + height
    assert photo_mask.shape == (1, 512, 512) and float(photo_mask[0, 126, 223]) > 0.99 and 0 < width < 120
    x0, y0, x1, y1 = reference.box
    assert x0 < 203.8 < 246.6 < x1 and y0 < 101 < 141 < y1  # the pupils and the mouth, read off the photograph by eye
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_list_of_photographs_keeps_its_order_and_skips_what_has_no_face(node, astronaut, facexlib_folder, caplog):
    """Two settings for three photographs: the last one of a shorter list counts on, as in ComfyUI."""
    inputs = {name: [value] for name, value in DEFAULTS.items()} | {"no_face": ["skip"], "crop_factor": [2.0, 3.0]}
    empty = torch.full((1, 64, 64, 3), 0.5)
    with torch.inference_mode():
        references, crops, *others = node.execute(image=[astronaut, empty, astronaut], **inputs).result
    assert len(references) == 2 and {len(values) for values in (crops, *others)} == {2}
    sides = [reference.box[2] - reference.box[0] for reference in references]
    assert sides[1] / sides[0] == pytest.approx(1.5, rel=0.05)
    assert "Entry 2 of 3 in the list: No face was found" in caplog.text


def test_the_folder_is_registered_beside_those_already_known(node, astronaut, facexlib_folder, tmp_path):
    import folder_paths
    from omniportrait.nodes.face_reference import facexlib_folders

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder_paths.add_model_folder_path("facexlib", str(elsewhere))
    assert facexlib_folders() == [elsewhere, facexlib_folder]
    assert facexlib_folders() == [elsewhere, facexlib_folder]
    save_random(elsewhere, "parsing_parsenet.pth")
    assert facexlib_backend.load_parser(facexlib_folders()).name == "facexlib parsing"


@pytest.mark.parametrize("name", facexlib_backend.DETECTION_FILES)
def test_auto_takes_facexlib_once_its_file_is_there(node, astronaut, facexlib_folder, name):
    """Random weights find rubbish or nothing: what is shown is that the file is loaded as it is and asked."""
    state = save_random(facexlib_folder, name, prefix="module.")
    torch.manual_seed(0)
    random_state = torch.get_rng_state()
    detector = facexlib_backend.load_detector([facexlib_folder])
    loaded = detector._network.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)
    result = run_node(node, astronaut[:, :256, 96:352], no_face="whole image")
    assert result[0].source.split(",")[0] in ("facexlib", "no face found")
    assert torch.equal(torch.get_rng_state(), random_state)


def test_retinaface_gets_bgr_pixels_and_its_rows_become_faces(monkeypatch):
    seen = []

    class Network:
        def detect_faces(self, pixels, score, overlap):
            seen.append(pixels)
            row = [10, 20, 50, 80, 0.9, 20, 40, 40, 41, 30, 50, 22, 60, 38, 61]
            flat, lost = [5, 5, 5, 9, 0.99, *[0] * 10], [np.nan, *row[1:]]
            return np.array([row, flat, lost], dtype=np.float32)

    picture = torch.rand(3, 90, 70, generator=torch.Generator().manual_seed(1))
    (face,) = facexlib_backend.RetinaFaceDetector(Network()).detect(picture)
    assert face.box == (10, 20, 50, 80) and face.score == pytest.approx(0.9)
    assert face.landmarks == ((20, 40), (40, 41), (30, 50), (22, 60), (38, 61))
    np.testing.assert_allclose(seen[0][7, 9], picture[:, 7, 9].numpy()[::-1] * 255, rtol=1e-6)


@pytest.mark.parametrize("name", facexlib_backend.PARSING_FILES)
def test_parsing_marks_the_labels_of_the_face(facexlib_folder, name):
    """The network is made to answer four labels, each in a quarter: skin, hair, background, nose."""
    save_random(facexlib_folder, name)
    kind = facexlib_backend.PARSING_FILES[name]
    parser = facexlib_backend.load_parser([facexlib_folder])
    skin, hair, background, nose = {"bisenet": (1, 17, 0, 10), "parsenet": (1, 13, 0, 2)}[kind]

    def answer(module, args, output):
        scores = torch.zeros_like(output[0])
        middle = scores.shape[-1] // 2
        for place, label in enumerate((skin, hair, background, nose)):
            rows, columns = (slice(middle * k, middle * (k + 1)) for k in divmod(place, 2))
            scores[:, label, rows, columns] = 1
        return (scores, *output[1:])

    parser._network.register_forward_hook(answer)
    mask = parser.parse(torch.rand(3, 300, 300, generator=torch.Generator().manual_seed(2)))
    expected = torch.zeros(300, 300)
    expected[:150, :150] = expected[150:, 150:] = 1
    differs = (mask - expected).abs() > 1e-6
    differs[148:152] = differs[:, 148:152] = False  # where two quarters meet the mask is blended
    assert mask.shape == (300, 300) and not differs.any()


def test_the_parser_s_mask_is_used_with_the_built_in_detector(node, astronaut, facexlib_folder):
    """The last layer is set so that BiSeNet answers skin everywhere: what stays is what lies near the face."""
    state = save_random(facexlib_folder, "parsing_bisenet.pth")
    state["conv_out.conv.bn.weight"].zero_()
    state["conv_out.conv.bn.bias"].fill_(1)
    state["conv_out.conv_out.weight"].zero_()
    state["conv_out.conv_out.weight"][1] = 1
    torch.save(state, facexlib_folder / "parsing_bisenet.pth")
    parsed, by_landmarks = run_node(node, astronaut)[0], run_node(node, astronaut, mask_source="landmarks")[0]
    assert parsed.source == "built-in, facexlib parsing" and by_landmarks.source == "built-in, landmarks"
    grown = float(parsed.mask.sum() / by_landmarks.mask.sum())
    assert grown == pytest.approx(1.35**2, rel=0.03)
    assert run_node(node, astronaut, detector="built-in")[0].source == "built-in, landmarks"


def test_a_missing_or_damaged_file_is_a_kind_error(node, astronaut, facexlib_folder):
    with pytest.raises(ValueError, match=r"detection_Resnet50_Final\.pth .*xinntao/facexlib") as caught:
        run_node(node, astronaut, detector="facexlib")
    assert str(facexlib_folder) in str(caught.value)
    path = facexlib_folder / "detection_mobilenet0.25_Final.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read as facexlib's detection_mobilenet0.25_Final"):
        run_node(node, astronaut)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        run_node(node, astronaut)


class Harmful:
    """Pickles as a call that would make a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_cannot_run_code(node, astronaut, facexlib_folder, tmp_path):
    torch.save({"weight": Harmful(tmp_path / "harmed")}, facexlib_folder / "detection_Resnet50_Final.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        run_node(node, astronaut)
    assert not (tmp_path / "harmed").exists()


def test_without_the_package_auto_goes_on_and_facexlib_says_how_to_install(
    node, astronaut, facexlib_folder, monkeypatch, caplog
):
    (facexlib_folder / "detection_Resnet50_Final.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "facexlib.detection.retinaface", None)
    assert run_node(node, astronaut)[0].source == "built-in, landmarks"
    assert "pip install facexlib" in caplog.text
    with pytest.raises(ValueError, match="pip install facexlib"):
        run_node(node, astronaut, detector="facexlib")


def test_the_built_in_way_imports_neither_facexlib_nor_opencv():
    """In a fresh interpreter that cannot import them."""
    from omniportrait import environment

    code = f"""
import importlib.util, sys
sys.modules["facexlib"] = sys.modules["cv2"] = sys.modules["kornia"] = None
spec = importlib.util.spec_from_file_location("omniportrait", {str(environment.ROOT / "__init__.py")!r},
    submodule_search_locations=[{str(environment.ROOT)!r}])
pack = importlib.util.module_from_spec(spec); sys.modules["omniportrait"] = pack; spec.loader.exec_module(pack)
import numpy, skimage.data, torch
from omniportrait.models.faces.build import FaceOptions, make_reference
photo = torch.from_numpy(numpy.array(skimage.data.astronaut())).float().div(255)[None]
print(make_reference(photo, None, FaceOptions()).reference.source)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "built-in, landmarks", done.stderr
