"""Columns of words, in what ComfyUI's real tokenizers make of a prompt.

The expected columns come from the offsets of transformers' own CLIP tokenizer over the prompt without its weights, or
are counted by hand; those behind embeddings also from what core's text encoder does with the tokens.
"""

from __future__ import annotations

from types import SimpleNamespace

import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import pytest
from clips import TOKENIZERS, VOCABULARY, by_offsets, end_of, found, make_clip
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omniportrait.sampling.tokens import clean_subject, read_layouts
from omniportrait.sampling.triggers import tokenisations
from omniportrait.sampling.words import words_of


@pytest.fixture(params=TOKENIZERS, scope="module")
def clip(request):
    """Reading a vocabulary takes longer than any test of it."""
    return make_clip(request.param)


@pytest.fixture(scope="module")
def sd15():
    return make_clip()


def test_a_plain_word(clip):
    assert found(clip, "a photo of a woman in a garden", "woman") == 5
    assert found(clip, "woman", "woman") == 1


@pytest.mark.parametrize("subject", ["Woman", " WOMAN ", "woman,", "(woman:1.2)", "((woman))", '"woman"'])
def test_case_weights_and_punctuation_of_the_subject_do_not_matter(clip, subject):
    assert found(clip, "A photo of a WOMAN, smiling", subject) == 5


@pytest.mark.parametrize(
    "text, plain",
    [
        ("a photo of a (woman:1.2) in a garden", "a photo of a woman in a garden"),
        ("(a photo:0.8) of a (woman)", "a photo of a woman"),
        ("((a (photo:1.3), sharp:0.7)) of ((a woman)) outside", "a photo, sharp of a woman outside"),
        ("(((a old (bearded:1.1) woman:1.4)))", "a old bearded woman"),
        ("a \\(very\\) old (woman:0)", "a (very) old woman"),
        ("a portrait:woman,(1girl:1.1)", "a portrait:woman,1girl"),
        ("two\nlines of a\n(woman:1.2)", "two\nlines of a\nwoman"),
        ("a café, naïve, 25 years: woman", "a café, naïve, 25 years: woman"),
        ("the woman's hat", "the woman's hat"),
    ],
)
def test_weights_take_no_columns(clip, text, plain):
    assert found(clip, text, "woman") == by_offsets(plain, end_of(plain, "woman"))


@pytest.mark.parametrize("word", ["bundeskanzlerin", "anaesthesiologist", "xqzwv", "l'étranger", "1girl"])
def test_the_last_sub_token_of_a_word_in_pieces(clip, word):
    plain = f"a photo of a {word}, smiling"
    assert found(clip, plain, word) == by_offsets(plain, end_of(plain, word))


def test_pieces_really_are_pieces(sd15):
    assert found(sd15, "a bundeskanzlerin", "bundeskanzlerin") > 2


def test_repeated_words(clip):
    plain = "a woman beside a woman, and one more woman"
    for occurrence in range(3):
        expected = by_offsets(plain, end_of(plain, "woman", occurrence))
        assert found(clip, "a (woman:1.3) beside a woman, and one more ((woman))", "woman", occurrence) == expected
        assert found(clip, plain, "woman", occurrence - 3) == expected
    assert len({found(clip, plain, "woman", occurrence) for occurrence in range(3)}) == 3


def test_a_subject_of_several_words(clip):
    plain = "a young man and a young woman and an old woman"
    assert found(clip, plain, "young woman") == by_offsets(plain, end_of(plain, "young woman"))
    assert found(clip, "a young (woman:1.2)", "young woman") == 3
    assert found(clip, "a young woman", "Young (woman:1.1)!") == 3
    with pytest.raises(ValueError, match='does not hold the subject "woman young"'):
        found(clip, plain, "woman young")


def test_a_word_inside_a_longer_one_is_another_word(clip):
    assert found(clip, "a superwoman and a womanly woman", "woman") == by_offsets(
        "a superwoman and a womanly woman", len("a superwoman and a womanly woman")
    )
    with pytest.raises(ValueError, match='does not hold the subject "man"'):
        found(clip, "a woman", "man")
    with pytest.raises(ValueError, match='does not hold the subject "kanzlerin"'):
        found(clip, "a bundeskanzlerin", "kanzlerin")


def spelled(clip, column: int, text: str) -> str:
    """The prompt without spaces, from its start to the end of the token at a column, by the tokens' bytes."""
    (chunk,), *_ = clip.tokenize(text).values()
    vocabulary = (getattr(clip.tokenizer, "clip_l", None) or clip.tokenizer.clip_h).inv_vocab
    tokens = [vocabulary[token].removesuffix("</w>") for token, _ in chunk[1 : column + 1]]
    letters = bytes_of_letters()
    return bytes(letters[letter] for token in tokens for letter in token).decode()


def bytes_of_letters() -> dict[str, int]:
    """The byte of each letter in which a byte-level vocabulary spells (GPT-2's table, as openai/CLIP takes it)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + k): byte for k, byte in enumerate(others)}


@pytest.mark.parametrize(
    "text, subject, until",
    [
        ("一个女人在花园里", "女人", "一个女人"),
        ("一位穿红裙的女人,微笑", "女人", "一位穿红裙的女人"),
        ("モデルの女性", "女性", "モデルの女性"),
        ("女性モデル", "女性", "女性"),
        ("女の子が花園に", "女の子", "女の子"),
    ],
)
def test_a_subject_in_text_without_spaces(clip, text, subject, until):
    """The column is that of the token with which the subject is complete, and no letter more."""
    assert spelled(clip, found(clip, text, subject), text) == until


def test_repeated_subjects_in_text_without_spaces_are_counted(clip):
    text = "一个女人和一个女人"
    assert [spelled(clip, found(clip, text, "女人", k), text) for k in (0, 1)] == ["一个女人", text]
    assert found(clip, text, "女人", -1) == found(clip, text, "女人", 1)
    with pytest.raises(ValueError, match='holds "女人" 2 times'):
        found(clip, text, "女人", 2)
    spaced = "一个女人和 女人"
    assert spelled(clip, found(clip, spaced, "女人"), spaced) == "一个女人和女人"  # the whole word is meant


def test_a_subject_that_shares_a_token_says_so(sd15):
    """The vocabulary ends 立 and begins っ by one token; with spaces each has its own."""
    with pytest.raises(ValueError, match='"立" shares a token .* put a space before and behind it'):
        found(sd15, "立っている", "立")
    assert spelled(sd15, found(sd15, "立 っている", "立"), "立 っている") == "立"


@pytest.mark.parametrize("subject", ["hatsune \\(cosplay\\) woman", "hatsune \\(cosplay\\)", "\\(cosplay\\)"])
@pytest.mark.parametrize("slashes", [True, False])
def test_escaped_brackets_in_a_subject(clip, subject, slashes):
    """The subject may be copied from the prompt or typed without the backslashes."""
    subject = subject if slashes else subject.replace("\\", "")
    text = "a hatsune \\(cosplay\\) woman in a garden"
    plain = text.replace("\\", "")
    last = "woman" if subject.endswith("woman") else "cosplay"
    assert found(clip, text, subject) == by_offsets(plain, end_of(plain, last))


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.characters(categories=["L", "N", "P", "S", "M", "Zs"]), max_size=40)
    | st.text("a1_ 'st女の", max_size=20)
)
@example(text="1girl, a_photo_of_a_woman's 2nd HAT")
def test_the_splitter_of_captions_splits_as_the_tokenizer(sd15, text):
    offsets = VOCABULARY.backend_tokenizer.pre_tokenizer.pre_tokenize_str(
        VOCABULARY.backend_tokenizer.normalizer.normalize_str(text)
    )
    letters = bytes_of_letters()
    expected = [bytes(letters[letter] for letter in word).decode() for word, _ in offsets]
    assert words_of(text) == expected


@pytest.mark.parametrize("before", [73, 74, 75, 76, 149, 150, 160])
def test_prompts_over_one_chunk(clip, before):
    """Each chunk holds 75 words between its start and its end token."""
    plain = "red " * before + "woman in a garden"
    column = 77 * (before // 75) + 1 + before % 75
    assert found(clip, plain, "woman") == column == by_offsets(plain, end_of(plain, "woman"))


def test_a_word_that_the_end_of_a_chunk_cuts(clip):
    pieces = len(VOCABULARY("bundeskanzlerin", add_special_tokens=False)["input_ids"])
    assert pieces > 2
    assert found(clip, "red " * 74 + "bundeskanzlerin", "bundeskanzlerin") == 77 + pieces - 1


def test_a_weight_moves_a_short_group_to_the_next_chunk(clip):
    """Core keeps a weighted group of less than eight tokens together: it does not fit behind 73 words."""
    assert found(clip, "red " * 73 + "(old grey woman:1.2)", "woman") == 77 + 3
    assert found(clip, "red " * 72 + "(old grey woman:1.2)", "woman") == 75


def test_every_chunk_has_its_end(clip):
    for layout in read_layouts(clip, clip.tokenize("red " * 80)).values():
        assert layout.ends == (76, 77 + 6)


def test_the_words_are_listed_where_one_is_missing(clip):
    with pytest.raises(ValueError) as caught:
        found(clip, "a (photo:1.2) of a Woman, in a garden!", "zebra")
    assert str(caught.value) == (
        'The text does not hold the subject "zebra": choose one of its words, which are '
        "a, photo, of, woman, in, garden."
    )
    with pytest.raises(ValueError, match="which are none"):
        found(clip, "!!!", "zebra")
    many = [f"{a}{b}" for a in "abcdefgh" for b in "bcdfghkl"]
    with pytest.raises(ValueError) as caught:
        found(clip, " ".join(many), "zebra")
    assert str(caught.value).endswith(f" which are {', '.join(many[:40])}, ….")


def test_an_occurrence_that_is_not_there(clip):
    with pytest.raises(ValueError, match='holds "woman" once, so there is no occurrence 2: lower occurrence to 1 or'):
        found(clip, "a woman", "woman", 1)
    with pytest.raises(ValueError, match='holds "woman" 2 times, so there is no occurrence 5: lower occurrence to 2'):
        found(clip, "a woman and a woman", "woman", 4)


@pytest.mark.parametrize("subject", ["!", "(!:1.2)", "…", "-- ,"])
def test_a_subject_without_a_word(clip, subject):
    with pytest.raises(ValueError, match="holds no word"):
        clean_subject(clip, subject)


def test_the_two_encoders_of_sdxl_agree():
    layouts = read_layouts(*(lambda clip: (clip, clip.tokenize("a (woman:1.1)! " + "red " * 90)))(make_clip("sdxl")))
    assert set(layouts) == {"l", "g"}
    assert layouts["l"] == layouts["g"]  # though CLIP-G pads with "!", which is also a word of this prompt


@pytest.mark.parametrize("made", [comfy.text_encoders.flux.FluxTokenizer, comfy.text_encoders.sd3_clip.SD3Tokenizer])
def test_other_text_encoders_are_refused_by_name(made):
    tokenizer = made()
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, cond_stage_model=None)
    with pytest.raises(ValueError, match=f"{made.__name__}: .*t5xxl.*SD1.x, SD2.x or SDXL"):
        clean_subject(clip, "woman")


def test_no_clip():
    with pytest.raises(ValueError, match="clip input is empty"):
        clean_subject(None, "woman")


def photomakers_tokens(clip, text: str) -> dict:
    """The filter of core's PhotoMaker Encode, written from its description: one word id left out, the last repeated."""
    dropped = text.split(" ").index("photomaker") + 1
    tokens = {}
    for key, chunks in clip.tokenize(text, return_word_ids=True).items():
        tokens[key] = []
        for chunk in chunks:
            kept = [entry for entry in chunk if entry[2] != dropped]
            tokens[key].append([entry[:2] for entry in kept + [chunk[-1]] * (len(chunk) - len(kept))])
    return tokens


@pytest.mark.parametrize(
    "text",
    ["a photograph of photomaker woman", "photomaker woman", "a (sharp:1.1) photomaker woman", "a woman photomaker"],
)
def test_photomakers_own_tokens_are_among_the_tokenisations(clip, text):
    made = list(tokenisations(clip, text))
    assert made[0] == clip.tokenize(text)
    assert photomakers_tokens(clip, text) in made
    assert made[-1] == clip.tokenize(text.replace("photomaker ", "").removesuffix(" photomaker"))


def test_a_prompt_without_the_trigger_has_one_tokenisation(clip):
    assert list(tokenisations(clip, "a photomakers woman")) == [clip.tokenize("a photomakers woman")]
