"""The portrait world's renderer, against naive computations and against what a portrait must be."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from omniportrait.lab.world import hair, mesh, raster, shade, shards, view
from omniportrait.lab.world.identity import HAIR_STYLES, Detail, identity
from omniportrait.lab.world.portrait import landmark_vertices, posed, projected, render, turned
from PIL import Image


@pytest.fixture(scope="module")
def person():
    return identity(3)


@pytest.fixture
def plain():
    return view.reference_view(np.random.default_rng(5))


def naive_depth(points, depth, faces, size):
    """Nearest depth at each pixel's centre: every pixel asks every triangle."""
    nearest = np.full((size, size), np.inf)
    for a, b, c in faces:
        corners = points[[a, b, c]].astype(np.float64)
        system = np.vstack([corners.T, np.ones(3)])
        if np.linalg.det(system) >= 0:
            continue
        for row in range(size):
            for column in range(size):
                shares = np.linalg.solve(system, (column + 0.5, row + 0.5, 1.0))
                if (shares >= 0).all():
                    nearest[row, column] = min(nearest[row, column], shares @ depth[[a, b, c]])
    return nearest


def test_the_z_buffer_agrees_with_asking_every_triangle():
    rng = np.random.default_rng(0)
    points = rng.uniform(-3, 15, (60, 2)).astype(np.float32)
    depth = rng.uniform(1, 9, 60).astype(np.float32)
    faces = rng.permutation(60).reshape(20, 3).astype(np.int32)
    seen, weights = raster.rasterise(points, depth, faces, 12)
    wanted = naive_depth(points, depth, faces, 12)
    assert (np.isfinite(wanted) == (seen != raster.NOTHING)).all()
    covered = np.nonzero(seen != raster.NOTHING)
    found = raster.interpolate(depth[:, None], faces, seen[covered], weights[covered])[:, 0]
    assert len(found) > 30
    np.testing.assert_allclose(found, wanted[covered], rtol=1e-4)


def test_normals_of_a_sphere_point_outwards():
    turn, down = np.meshgrid(np.linspace(0, 2 * np.pi, 40), np.linspace(0.2, np.pi - 0.2, 30))
    points = np.stack([np.sin(down) * np.sin(turn), np.cos(down), np.sin(down) * np.cos(turn)], -1)
    points = points.reshape(-1, 3).astype(np.float32)
    lattice = hair.lattice(30, 40)
    normals = raster.vertex_normals(points, lattice[: len(lattice) // 2])
    inner = np.abs(points[:, 1]) < 0.8
    assert ((normals * points).sum(1)[inner] > 0.98).all()


def test_a_spot_darkens_its_disk_alone():
    places = np.random.default_rng(1).uniform(-1, 1, (500, 3)).astype(np.float32)
    colours = np.ones((500, 3), np.float32)
    centre, radius, tint = np.float32([[0.1, 0.2, 0.0]]), np.float32([0.6]), np.float32([[0.5, 0.4, 0.3]])
    raster.paint_spots(colours, places, centre, radius, tint)
    away = np.linalg.norm(places - centre, axis=1)
    assert (colours[away >= 0.6] == 1).all()
    np.testing.assert_allclose(colours[away < 0.4], np.repeat(tint, (away < 0.4).sum(), 0), rtol=1e-5)


def test_the_mesh_is_cut_and_centred_between_the_eyes():
    template = mesh.mesh()
    assert template.vertices[:, 1].min() > mesh.FLOOR
    eyes = [template.vertices[template.of(f"helper-{side}-eye")].mean(0) for side in "lr"]
    np.testing.assert_allclose(eyes[0] + eyes[1], 0, atol=1e-5)
    lips = template.vertices[template.lips > 0.5]
    assert len(lips) > 100 and (np.abs(lips[:, 0]) < 0.4).all() and lips[:, 1].max() < -0.4


def test_a_target_moves_what_its_file_says():
    name = "faceunits01/targets/faceunits/jawOpen.target"
    rows = [line.split() for line in (mesh.data_folder() / name).read_text().splitlines() if line[:1] not in ("#", "")]
    wanted = {int(row[0]): np.float32(row[1:4]) for row in rows}
    vertices = np.zeros_like(mesh.mesh().vertices)
    mesh.add_target(vertices, name, 2.0)
    for place, original in enumerate(mesh.mesh().keep):
        np.testing.assert_allclose(vertices[place], 2 * wanted.get(int(original), np.zeros(3)), atol=1e-6)


def test_every_named_target_exists():
    for expression in view.EXPRESSIONS:
        for name in view.face_units(expression):
            assert len(mesh.target(name)[0]), name
    with pytest.raises(ValueError, match="use one of neutral"):
        view.face_units("bored")


def test_the_same_number_is_the_same_person_and_another_is_not(person):
    again, other = identity(3), identity(4)
    assert np.array_equal(person.vertices, again.vertices) and np.array_equal(person.skin, again.skin)
    assert np.abs(person.vertices - other.vertices).max() > 0.02
    assert {identity(number).hair for number in range(80)} == set(HAIR_STYLES)


def test_the_same_arguments_give_the_same_bytes(person, plain):
    first, second = render(person, plain, 64), render(person, plain, 64)
    assert first.picture.tobytes() == second.picture.tobytes() and first.record == second.record


def test_labels_are_where_the_face_is(person, plain):
    portrait = render(person, replace(plain, garment="t-shirt"))
    names = {name: index for index, name in enumerate(shade.LABELS)}
    present = set(np.unique(portrait.labels))
    assert {names[name] for name in ("background", "skin", "eyes", "clothes", "lips", "brows", "neck")} <= present
    for (x, y), name in zip(portrait.record["landmarks"], ("eyes", "eyes", "skin", "lips", "lips"), strict=True):
        around = portrait.labels[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5]
        assert names[name] in around, name
    left, top, right, bottom = portrait.record["face_box"]
    assert 0.4 * 256 < bottom - top < 0.7 * 256  # a reference's face is over half of the picture's height
    assert (right - left) < 0.6 * 256


def test_the_face_keeps_its_size_and_place(person, plain):
    for height, x, y in ((0.35, 0.4, 0.4), (0.55, 0.55, 0.45)):
        record = render(person, replace(plain, face_height=height, x=x, y=y), 128).record
        eyes = np.mean(record["landmarks"][:2], axis=0)
        np.testing.assert_allclose(eyes, (x * 128, y * 128), atol=2)


def test_landmarks_are_left_to_right_and_turn_with_the_head(person, plain):
    head = posed(person, plain)
    noses = []
    for yaw in (-30.0, 0.0, 30.0):
        turned_view = replace(plain, yaw=yaw)
        screen, _ = projected(turned(head, turned_view), turned_view, 256)
        marks = np.array([screen[points].mean(0) for points in landmark_vertices()])
        assert marks[0, 0] < marks[1, 0] and marks[3, 0] < marks[4, 0]
        noses.append(marks[2, 0] - marks[:2, 0].mean())
    assert noses[0] < noses[1] - 5 < noses[2] - 10


def test_a_mole_is_dark_where_the_record_says(person, plain):
    template = mesh.mesh().vertices
    cheek = np.flatnonzero((np.abs(template[:, 0] - 0.4) < 0.06) & (np.abs(template[:, 1] + 0.45) < 0.06))
    centre = template[cheek[template[cheek, 2].argmax()]]
    mole = Detail("mole", centre, 0.06, (centre[None], np.float32([0.06]), np.float32([[0.2, 0.2, 0.2]])))
    clean = replace(person, details=())
    with_mole, without = render(replace(clean, details=(mole,)), plain), render(clean, plain)
    (found,) = with_mole.record["details"]
    assert found["visible"] and without.record["details"] == []
    changed = np.abs(with_mole.picture.astype(int) - without.picture.astype(int)).sum(2)
    rows, columns = np.nonzero(changed > 60)
    np.testing.assert_allclose((columns.mean() + 0.5, rows.mean() + 0.5), (found["x"], found["y"]), atol=0.7)
    away = np.hypot(rows + 0.5 - found["y"], columns + 0.5 - found["x"])
    assert away.max() < found["radius"] + 1.5
    assert with_mole.picture[rows, columns].mean() < 0.7 * without.picture[rows, columns].mean()


def test_a_mole_on_the_far_cheek_is_not_visible(person, plain):
    numbers = range(200)
    marked = next(who for who in map(identity, numbers) if any(detail.centre[0] > 0.45 for detail in who.details))
    index = next(index for index, detail in enumerate(marked.details) if detail.centre[0] > 0.45)
    hidden = render(marked, replace(plain, yaw=75.0)).record["details"][index]
    assert not hidden["visible"]


def test_captions_hold_the_view_and_nothing_of_the_person(plain):
    seen = replace(plain, expression="angry", garment="t-shirt", colour="orange", background="beach")
    assert view.caption("woman", seen) == "an angry woman in an orange t-shirt on a beach"
    neutral = replace(seen, expression="neutral", colour="red")
    assert view.caption("man", neutral) == "a man in a red t-shirt on a beach"


def test_retold_captions_say_less_or_more_but_never_anything_else(plain):
    record = {"subject": "man", "expression": "sad", "colour": "red", "garment": "suit", "background": "beach"}
    rng = np.random.default_rng(0)
    told = [view.retold(record, rng) for _ in range(400)]
    assert {"a sad man in a red suit on a beach", "a photo of a sad man in a red suit on a beach", "a man"} <= set(told)
    words = set("a photo portrait of sad man in red suit on beach".split())
    assert all(set(text.split()) <= words and "man" in text.split() for text in told)
    whole = sum(text.endswith("a sad man in a red suit on a beach") for text in told)
    assert 0.5 < whole / 400 < 0.8


def test_every_style_of_hair_can_be_drawn(person, plain):
    hair_label = shade.LABELS.index("hair")
    areas = {}
    for style in HAIR_STYLES:
        areas[style] = int((render(replace(person, hair=style), plain, 96).labels == hair_label).sum())
    assert areas["bald"] == 0
    assert areas["short"] > 100 and areas["long"] > 1.3 * areas["short"] and areas["afro"] > 1.3 * areas["short"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_framing_changes_size_and_place_alone(index):
    sitter, close = (shards.view_of(7, 3, index, framing) for framing in ("sitter", "close"))
    assert close.face_height > sitter.face_height and shards.view_of(7, 3, index) == sitter
    assert replace(close, face_height=sitter.face_height, x=sitter.x, y=sitter.y) == sitter


def test_more_people_are_planned_under_their_own_numbers(tmp_path):
    plan = shards.plan(tmp_path, identities=3, held_out=0, views=0, size=48, seed=7, of=2, framing="close", start=4)
    assert [(shard.path.name, shard.first) for shard in plan] == [("train-000002.tar", 4), ("train-000003.tar", 6)]
    assert {shard.framing for shard in plan} == {"close"}


def test_shards_hold_what_was_rendered_and_go_on(tmp_path):
    plan = shards.plan(tmp_path, identities=3, held_out=1, views=1, size=48, seed=7, of=2)
    assert [shard.path.name for shard in plan] == ["held_out-000000.tar", "train-000000.tar", "train-000001.tar"]
    assert plan[0].first == shards.HELD_OUT and [shard.count for shard in plan] == [1, 2, 1]
    path = shards.write(plan[1])
    before = path.stat().st_mtime_ns
    assert shards.write(plan[1]) == path and path.stat().st_mtime_ns == before
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    assert len(files) == 2 * 2 * 3
    record = json.loads(files["0000001_01.json"])
    number, index = 1, 1
    random = view.random_view(np.random.default_rng((7, number, index)))
    again = render(identity(number, 7), random, 48)
    assert record == json.loads(json.dumps(again.record))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(files["0000001_01.png"]))), again.labels)
    close = np.asarray(Image.open(io.BytesIO(files["0000001_01.jpg"]))).astype(int) - again.picture
    assert np.abs(close).mean() < 4
