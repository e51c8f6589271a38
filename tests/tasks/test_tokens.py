"""Text and prompts to arrays: boundaries, shared rows, truncation, errors."""

import numpy as np
import pytest
from tokenizers import processors

import zojax.tasks as tasks

SUBJ = tasks.TEMPLATES["subj"]


def texts_of(tokenizer, data, i=0):
    """The rows of an example and the targets of its options, as text."""
    rows = [
        tokenizer.decode(tokens[:length].tolist(), skip_special_tokens=False)
        for tokens, length in zip(data.tokens[i], data.length[i], strict=True)
    ]
    targets = [
        tokenizer.decode(target[mask].tolist())
        for target, mask in zip(data.target[i], data.target_mask[i], strict=True)
    ]
    return rows, targets


def test_options_of_one_token_share_one_row(tokenizer):
    data = tasks.encode_options([{"text": "ok", "label": 1}], SUBJ, tokenizer, 64)
    assert texts_of(tokenizer, data) == (["ok . this is a"], [" story", " movie"])
    assert data.row.tolist() == [[0, 0]]
    assert (data.position == data.length[0, 0] - 1).all()
    assert data.label.tolist() == [1]
    dtypes = {name: array.dtype.name for name, array in vars(data).items()}
    assert {name for name, dtype in dtypes.items() if dtype == "bool"} == {
        "target_mask",
        "option_mask",
    }
    assert set(dtypes.values()) == {"bool", "int32"}


def test_row_that_begins_another_is_not_repeated(tokenizer):
    template = tasks.Template("this is", (" a", " a story", " so", " so the fell"))
    data = tasks.encode_options([{"label": 2}], template, tokenizer, 64)
    rows, targets = texts_of(tokenizer, data)
    assert rows == ["this is so the", "this is a"]
    assert targets == [" a", " a story", " so", " so the fell"]
    assert data.row.tolist() == [[0, 1, 0, 0]]
    start = data.position[0, 0, 0]
    assert data.position[0, 3].tolist() == [start, start + 1, start + 2]


def test_space_that_ends_the_prompt_belongs_to_the_option(tokenizer):
    """A prompt that ends in a space has a token of its own for it; the full text has not."""
    template = tasks.Template("he fell so ", ("the story", "Ok"))
    prompt = tokenizer.encode(template.prompt).tokens
    assert prompt[-2:] == ["Ġso", "Ġ"]
    data = tasks.encode_options([{"label": 0}], template, tokenizer, 64)
    rows, targets = texts_of(tokenizer, data)
    assert targets == [" the story", " Ok"]
    assert all(row.startswith("he fell so") for row in rows)
    assert (data.position[0, :, 0] == len(prompt) - 2).all()


def test_option_merged_into_the_last_word(tokenizer):
    """The token that both share goes to the options, all of them scored from there."""
    template = tasks.Template("he f", ("ell", "oo"))
    data = tasks.encode_options([{"label": 0}], template, tokenizer, 64)
    _, targets = texts_of(tokenizer, data)
    assert targets == [" fell", " foo"]


@pytest.mark.parametrize("which", ["bos_tokenizer", "wrapping_tokenizer"])
def test_special_tokens_in_front_stay_and_those_behind_go(which, request):
    tokenizer = request.getfixturevalue(which)
    data = tasks.encode_options([{"text": "ok", "label": 0}], SUBJ, tokenizer, 64)
    rows, targets = texts_of(tokenizer, data)
    assert rows == ["<s>ok . this is a"]
    assert targets == [" story", " movie"]
    empty = tasks.encode_options([{"label": 0}], tasks.Template("", ("the", "so")), tokenizer, 64)
    assert texts_of(tokenizer, empty)[1] == ["the", "so"]


def test_examples_of_different_shape(tokenizer):
    template = tasks.Template("he", lambda e: tuple(e["options"]))
    options = ([" a", " so the"], [" movie"], [" a story", " the story", " so"])
    examples = [{"options": o, "label": 0} for o in options]
    data = tasks.encode_options(examples, template, tokenizer, 64)
    assert data.option_mask.tolist() == [[True, True, False], [True, False, False], [True] * 3]
    assert (data.length > 0).sum(axis=1).tolist() == [1, 1, 2]
    for i, expected in enumerate(options):
        assert [t for t in texts_of(tokenizer, data, i)[1] if t] == expected
    pads = np.arange(data.tokens.shape[-1]) >= data.length[..., None]
    assert (data.tokens[pads] == 0).all()


def test_long_prompt_loses_its_front_but_not_bos(bos_tokenizer):
    template = tasks.Template("{text} this is", (" a", " a story the"))
    examples = [{"text": text, "label": 0} for text in ("z" * 30, "y" * 9, "ok")]
    with pytest.warns(UserWarning, match="2 of 3 examples are longer than max_length=8") as seen:
        data = tasks.encode_options(examples, template, bos_tokenizer, 8)
    assert len(seen) == 1
    assert data.tokens.shape == (3, 1, 8)
    cut, whole = texts_of(bos_tokenizer, data, 0), texts_of(bos_tokenizer, data, 2)
    assert cut[0][0].startswith("<s>z") and cut[0][0].endswith(" this is a story")
    assert cut[1] == whole[1] == [" a", " a story the"]
    # The longest row is full, and both options of an example follow the same cut prompt.
    assert data.length[0].max() == data.length[1].max() == 8
    assert data.row[0].tolist() == [0, 0]


def test_no_room_for_the_prompt(tokenizer, bos_tokenizer):
    template = tasks.Template("he", (" a story the so", " a"))
    with pytest.raises(ValueError, match="example 0 .* no room for the prompt in max_length=3"):
        tasks.encode_options([{"label": 0}], template, tokenizer, 3)
    with pytest.raises(ValueError, match="no room"):
        tasks.encode_options([{"label": 0}], template, bos_tokenizer, 3)


def test_bad_examples(tokenizer):
    with pytest.raises(ValueError, match="no examples to encode"):
        tasks.encode_options([], SUBJ, tokenizer, 8)
    with pytest.raises(ValueError, match="max_length=0"):
        tasks.encode_options([{"text": "x", "label": 0}], SUBJ, tokenizer, 0)
    with pytest.raises(ValueError, match=r"example 1: label 2 .*\(' story', ' movie'\)"):
        bad = [{"text": "x", "label": 0}, {"text": "x", "label": 2}]
        tasks.encode_options(bad, SUBJ, tokenizer, 64)
    with pytest.raises(ValueError, match="no token comes before the options"):
        tasks.encode_options([{"label": 0}], tasks.Template("", ("a", "b")), tokenizer, 8)


def test_encoder_texts_keep_their_special_tokens(wrapping_tokenizer):
    texts = ["he fell", "he fell so the story is a movie", "ok"]
    with pytest.warns(UserWarning, match="1 of 3 examples are longer than max_length=6; the right"):
        data = tasks.encode_texts(texts, [2, 0, 1], wrapping_tokenizer, 6, 3)
    decoded = [
        wrapping_tokenizer.decode(tokens[:length].tolist(), skip_special_tokens=False)
        for tokens, length in zip(data.tokens, data.length, strict=True)
    ]
    assert decoded[0] == "<s>he fell</s>" and decoded[2] == "<s>ok</s>"
    assert decoded[1].startswith("<s>he fell so") and decoded[1].endswith("</s>")
    assert data.length.tolist() == [
        len(wrapping_tokenizer.encode(texts[0])),
        6,
        len(wrapping_tokenizer.encode(texts[2])),
    ]
    assert data.label.tolist() == [2, 0, 1] and data.row is None
    assert data.tokens.dtype == data.length.dtype == data.label.dtype == np.int32


def test_bad_texts(tokenizer, wrapping_tokenizer):
    with pytest.raises(ValueError, match="2 texts but 1 labels"):
        tasks.encode_texts(["a", "b"], [0], tokenizer, 8, 2)
    with pytest.raises(ValueError, match="text 1: label 3 .* 0 to 2"):
        tasks.encode_texts(["a", "b"], [0, 3], tokenizer, 8, 3)
    with pytest.raises(ValueError, match="text 0: '' has no tokens"):
        tasks.encode_texts([""], [0], tokenizer, 8, 2)
    with pytest.raises(ValueError, match="max_length=2 has no room"):
        tasks.encode_texts(["a"], [0], wrapping_tokenizer, 2, 2)


def test_load_tokenizer_switches_padding_and_truncation_off(tmp_path, wrapping_tokenizer):
    copy = type(wrapping_tokenizer).from_str(wrapping_tokenizer.to_str())
    copy.enable_padding(length=50)
    copy.enable_truncation(4)
    copy.save(str(tmp_path / "tokenizer.json"))
    loaded = tasks.load_tokenizer(tmp_path)
    text = "he fell so the story"
    assert loaded.encode(text).ids == wrapping_tokenizer.encode(text).ids
    assert isinstance(loaded.post_processor, processors.TemplateProcessing)


def test_load_tokenizer_errors(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file; .*vocab\.json"):
        tasks.load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="found no folder"):
        tasks.load_tokenizer(tmp_path / "none")
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        tasks.load_tokenizer(tmp_path)
