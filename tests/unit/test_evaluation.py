"""run.py evaluate without a server: where a workflow's places are, prompts, people."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from api_graphs import graph, node
from omniportrait import environment
from omniportrait.evaluation import protocol
from omniportrait.evaluation.protocol import HERE
from omniportrait.evaluation.workflow import bind, change, read
from omniportrait.nodes.inputs import INPUTS

ROOT = environment.ROOT


def test_the_graph_alone_tells_where_things_go():
    bound = bind(graph(), {})
    assert bound.picture == "8" and set(bound.prompt) == set("12345678")
    assert {role: set(places) for role, places in bound.places.items()} == {
        "photo": {("2", "image")}, "prompt": {("3", "text")}, "seed": {("6", "seed")},
    }  # fmt: skip
    filled = bound.filled({"photo": "p.png", "prompt": "a man at sea", "subject": "man", "seed": 9}, "token")
    assert filled["2"]["inputs"]["image"] == "p.png" and filled["6"]["inputs"]["seed"] == 9
    assert [filled[each]["inputs"]["text"] for each in "34"] == ["a man at sea", "ugly"]
    assert filled["8"] == node("PreviewImage", images=["7", 0], cell="token")
    assert bound.prompt == {k: v for k, v in graph().items() if k != "9"}, "the workflow itself is left as it is"


def test_braces_in_texts_and_titles_come_first():
    changed = graph()
    changed["3"]["inputs"]["text"] = "photo of {prompt}, best quality"
    changed["4"]["inputs"]["text"] = "not a {subject}"
    changed["10"] = node("PrimitiveInt", "{seed}", seed=3)
    changed["6"]["inputs"]["seed"] = ["10", 0]
    bound = bind(changed, {})
    filled = bound.filled({"photo": "p", "prompt": "a man", "subject": "man", "seed": 4}, "t")
    assert filled["3"]["inputs"]["text"] == "photo of a man, best quality"
    assert filled["4"]["inputs"]["text"] == "not a man" and filled["10"]["inputs"]["seed"] == 4


@pytest.mark.parametrize(
    ("more", "given", "sentence"),
    [
        ({"10": node("SaveImage", images=["7", 0])}, {}, r"several nodes save .*8 \(SaveImage\), 10 .*picture=NODE"),
        ({"5": node("Join", positive=["3", 0], image=["2", 0], image2=["10", 0]),
          "10": node("LoadImage", image="b.png")}, {}, r"photo: 10 .*, 2 .*photo=2.image or --bind photo=10.image"),
        ({"5": node("Combine", positive=["3", 0], conditioning_2=["10", 0]),
          "10": node("CLIPTextEncode", text="other")}, {}, r"the prompt.*prompt=3.text or --bind prompt=10.text"),
        ({"6": node("KSampler", positive=["5", 0], noise=["1", 0])}, {}, "no seed was found"),
        ({}, {"photo": "9.image"}, "the picture needs no node 9"),
        ({}, {"style": "3.text"}, "bind knows no style"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_asked_for(more, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        bind(graph(**more), given)


def test_a_picture_of_a_decode_goes_before_other_saved_ones():
    assert bind(graph(**{"0": node("SaveImage", images=["2", 0])}), {}).picture == "8"


def test_bind_settles_it():
    two = graph(**{"10": node("SaveImage", images=["7", 0])})
    assert bind(two, {"picture": "10", "prompt": "4.text"}).places["prompt"] == {("4", "text"): "{prompt}"}


def test_inputs_are_set_by_id_class_and_title():
    changed = graph(**{"3": node("CLIPTextEncode", "Mine", clip=["1", 1], text="a woman")})
    assert [change(changed, where, value) for where, value in
            (("KSampler.cfg", 2.5), ("Mine.text", "x"), ("2.image", None), ("Other.a", 1))] == [1, 1, 1, 0]  # fmt: skip
    assert changed["6"]["inputs"]["cfg"] == 2.5 and changed["3"]["inputs"]["text"] == "x"
    assert changed["2"]["inputs"] == {}
    with pytest.raises(ValueError, match="KSampler.gain: 6 .* has model, seed"):
        change(changed, "KSampler.gain", 1)


def test_the_pages_own_form_is_refused():
    with pytest.raises(ValueError, match=r"Export \(API\)"):
        read(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(ValueError, match="no workflow in API format"):
        read(json.dumps({"1": {"inputs": {}}}))


SHIPPED = sorted(path.stem for path in (HERE / "methods").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_method_binds_and_takes_the_protocol(name):
    paper = protocol.read_protocol(HERE / "protocols" / "paper.yaml")
    changes = [*paper.inputs.items(), ("CheckpointLoaderSimple.ckpt_name", "mine.safetensors")]
    method = protocol.read_method(name, changes, {})
    assert {"prompt", "seed"} <= set(method.bound.places) and ("photo" in method.bound.places) == (name != "plain")
    values = [value for entry in method.bound.prompt.values() for value in entry["inputs"].items()]
    for wanted in (("steps", 50), ("cfg", 7.5), ("sampler_name", "ddim"), ("width", 1024)):
        assert wanted in values, wanted
    assert ("ckpt_name", "mine.safetensors") in values
    for entry in method.bound.prompt.values():
        for value in entry["inputs"].values():
            assert not isinstance(value, list) or str(value[0]) in method.bound.prompt


def test_shipped_methods_have_the_nodes_as_they_are():
    """Every widget of ours but optional ones, and no other: a server refuses a prompt without."""
    for path in (HERE / "methods").glob("*.json"):
        for entry in read(path.read_text(encoding="utf-8")).values():
            if rows := INPUTS.get(entry["class_type"]):
                assert set(entry["inputs"]) <= {row.name for row in rows}, path.name
                widgets = {row.name for row in rows if row.default is not None and not row.optional}
                assert widgets <= set(entry["inputs"]), f"{path.name}, {entry['class_type']}"


@pytest.mark.parametrize("path", sorted((ROOT / "workflows" / "api").glob("*.json")), ids=lambda path: path.stem)
def test_the_packs_workflows_bind(path):
    """But for those with several pictures or photographs, which ask which one is meant, or with no portrait at all."""
    workflow = read(path.read_text(encoding="utf-8"))
    kinds = Counter(entry["class_type"] for entry in workflow.values())
    if kinds["LoadImage"] < 2 and kinds["VAEDecode"] == 1:
        places = bind(workflow, {}).places
        assert {"prompt", "seed", "subject"} <= set(places) and ("photo" in places) == bool(kinds["LoadImage"])
    else:
        with pytest.raises(
            ValueError, match="give --bind (picture|photo)=|several nodes|no node saves|no place|no seed"
        ):
            bind(workflow, {})


def test_the_papers_prompts():
    paper = protocol.read_protocol(HERE / "protocols" / "paper.yaml")
    assert len(paper.prompts) == 30 and len({prompt.text for prompt in paper.prompts}) == 30
    kinds = Counter(prompt.category for prompt in paper.prompts)
    assert set(kinds.values()) == {5} and len(kinds) == 6


def test_people(tmp_path):
    with pytest.raises(ValueError, match="holds no photographs"):
        protocol.read_people(tmp_path, "woman")
    for name in ("b.jpg", "a/1.png", "a/2.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="a has no subject"):
        protocol.read_people(tmp_path, None)
    (tmp_path / "people.csv").write_text("id,subject\na,man\n")
    first, second = protocol.read_people(tmp_path, "woman")
    assert (first.id, first.subject, first.photo.name, len(first.others)) == ("a", "man", "1.png", 1)
    assert (second.id, second.subject, second.others) == ("b", "woman", ())
