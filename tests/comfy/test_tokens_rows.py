"""Columns of words behind textual inversions, and of every word, in what core's own text encoders do with a prompt."""

from __future__ import annotations

import comfy.sd1_clip
import comfy.sdxl_clip
import pytest
import torch
from clips import VOCABULARY, found, make_clip
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omniportrait.sampling.tokens import clean_subject, find_subject, read_layouts
from safetensors.torch import save_file

LETTERS = st.characters(categories=["Lu", "Ll", "Lo", "Nd", "Po", "Zs", "Sm"], exclude_characters="\0")
WORDS = st.sampled_from(["red", "(woman:1.2)", "l'été", "bundeskanzlerin", "!", "女 "])
MARKS = (VOCABULARY.bos_token_id, VOCABULARY.eos_token_id)


@pytest.mark.parametrize("family", ["sd15", "sd20", "sdxl"])
def test_an_embedding_shifts_the_word_by_its_vectors(tmp_path, family):
    clip = make_clip(family, tmp_path)
    widths = {"sd15": {"clip_l": 768}, "sd20": {"clip_h": 1024}, "sdxl": {"clip_l": 768, "clip_g": 1280}}[family]
    save_file({key: torch.randn(3, width) for key, width in widths.items()}, tmp_path / "three.safetensors")
    assert found(clip, "a photo of a woman", "woman") == 5
    assert found(clip, "a photo of a embedding:three woman", "woman") == 8
    assert found(clip, "a (embedding:three:1.2) woman and embedding:three woman", "woman") == 5
    assert found(clip, "a (embedding:three:1.2) woman and embedding:three woman", "woman", 1) == 10
    assert found(clip, "a photo of a woman embedding:three", "woman") == 5
    assert found(clip, "a embedding:nowhere woman", "woman") == 2  # core leaves out what it does not find
    # Behind 73 words two columns are left, and core keeps an embedding together.
    assert found(clip, "red " * 73 + "embedding:three woman", "woman") == 77 + 4


def text_model(family: str):
    """Core's text encoders with three narrow layers, token embeddings of their true widths, random weights."""
    small = dict(num_hidden_layers=3, num_attention_heads=4, intermediate_size=8)
    options = {"clip_l_model_config": small, "clip_g_model_config": small}
    made = {"sd15": comfy.sd1_clip.SD1ClipModel, "sdxl": comfy.sdxl_clip.SDXLClipModel}[family]
    torch.manual_seed(0)
    model = made(dtype=torch.float32, model_options=options)
    for key in ("clip_l", "clip_g"):
        if hasattr(model, key):
            torch.nn.init.normal_(getattr(model, key).transformer.get_input_embeddings().weight)
    return model


def rows_of_word(encoder, tokens: list, word: int) -> list[int]:
    """Columns at which core's process_tokens really puts the embedding of vocabulary entry `word`."""
    with torch.no_grad():
        rows = encoder.process_tokens([[token for token, _ in chunk] for chunk in tokens], "cpu")[0]
    vector = encoder.transformer.get_input_embeddings().weight[word]
    return [k for k, row in enumerate(rows.reshape(-1, rows.shape[-1])) if torch.equal(row, vector)]


@pytest.mark.parametrize("family, key", [("sd15", "l"), ("sdxl", "l"), ("sdxl", "g")])
def test_columns_are_where_core_puts_the_words_vector(tmp_path, family, key):
    """With embeddings of the right width, of a wrong one, which core drops and pads for, and over several chunks."""
    model = text_model(family)
    clip = make_clip(family, tmp_path, model)
    both = {"clip_l": torch.randn(3, 768), "clip_g": torch.randn(3, 1280)}
    save_file(both, tmp_path / "right.safetensors")
    save_file({"emb_params": torch.randn(2, 1024)}, tmp_path / "wrong.safetensors")
    save_file({"clip_l": torch.randn(768), "clip_g": torch.randn(1280)}, tmp_path / "flat.safetensors")
    (word,) = VOCABULARY("woman", add_special_tokens=False)["input_ids"]
    for text in (
        "a woman",
        "a embedding:right woman",
        "a embedding:wrong woman",
        "a embedding:wrong embedding:right woman, embedding:wrong woman embedding:flat woman",
        "red " * 73 + "embedding:wrong woman " + "red " * 90 + "embedding:right woman",
        "embedding:wrong woman " + "red " * 100 + "woman",
    ):
        tokens = clip.tokenize(text)
        columns = [w.column for w in read_layouts(clip, tokens)[key].words if w.text == "woman"]
        assert columns and columns == rows_of_word(getattr(model, f"clip_{key}"), tokens[key], word), text
        assert [find_subject(clip, tokens, "woman", k) for k in range(len(columns))] == columns


def test_an_embedding_of_sd15_in_sdxl(tmp_path):
    """CLIP-L takes it and CLIP-G drops it: behind it the two encoders no longer agree, before it they do."""
    clip = make_clip("sdxl", tmp_path, text_model("sdxl"))
    save_file({"emb_params": torch.randn(3, 768)}, tmp_path / "old.safetensors")
    assert found(clip, "a woman, embedding:old", "woman") == 2
    with pytest.raises(ValueError, match="move the embedding behind the subject"):
        found(clip, "a embedding:old woman", "woman")


@pytest.fixture(scope="module")
def numbered():
    """SD1.5's CLIP with core's text encoder, where the first channel of a token's embedding is the token's number."""
    model = text_model("sd15")
    weight = model.clip_l.transformer.get_input_embeddings().weight
    with torch.no_grad():
        weight[:, 0] = torch.arange(len(weight))  # below 2 ** 24, so exact
    return make_clip(model=model)


def words_in_the_rows(clip, tokens: list) -> list[tuple[str, tuple[int, ...], int]]:
    """Each word's text, numbers and last column, in what core's text encoder makes of a prompt before its first layer;
    put together by the vocabulary of transformers' tokenizer."""
    encoder = clip.cond_stage_model.clip_l
    with torch.no_grad():
        rows = encoder.process_tokens([[token for token, _ in chunk] for chunk in tokens], "cpu")[0]
    words, pieces = [], []
    for column, number in enumerate(rows[..., 0].flatten().int().tolist()):
        if number in MARKS:  # CLIP-L pads with its end token, so the paddings go with it
            continue
        pieces.append(number)
        if VOCABULARY.convert_ids_to_tokens(number).endswith("</w>"):
            words.append((VOCABULARY.decode(pieces).strip(), tuple(pieces), column))
            pieces = []
    return words


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(LETTERS, max_size=60)
    | st.text("aB1'’(): ,.\\é女\n", max_size=30)
    | st.lists(WORDS, max_size=120).map(" ".join)
)
@example(text="red " * 74 + "bundeskanzlerin, a (woman:1.2) and " + "old " * 80 + "woman")  # three chunks, one word cut
def test_every_word_that_an_error_would_list_is_found(numbered, text):
    """Whatever is written: each word with a letter or digit, entered as the subject, leads to the column at which
    core's text encoder has the word's last piece; and the error lists exactly these words."""
    tokens = numbered.tokenize(text)
    words = words_in_the_rows(numbered, tokens["l"])
    listed = {pieces: word for word, pieces, _ in words if any(character.isalnum() for character in word)}
    for pieces, word in listed.items():
        columns = [column for _, other, column in words if other == pieces]
        subject = clean_subject(numbered, word)
        assert [find_subject(numbered, tokens, subject, k) for k in range(len(columns))] == columns
    with pytest.raises(ValueError) as caught:
        find_subject(numbered, tokens, "nobodywritesthis", 0)
    known = list(dict.fromkeys(listed.values()))
    shown = ", ".join(known[:40]) + (", …" if len(known) > 40 else "") or "none"
    assert str(caught.value).endswith(f", which are {shown}.")
