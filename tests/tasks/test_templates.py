"""Each template's text for one example, and how labels are read."""

import pytest

import zojax.tasks as tasks

YES_NO = ("Yes", "No")
NO_YES = ("No", "Yes")
WSC = {"text": "Ann thanked Sue because She had helped.", "label": True}
SPANS = {"span1_text": "Sue", "span2_text": "She"}
WSC_PROMPT = (
    "Ann thanked Sue because She had helped.\nIn the previous sentence, does the pronoun "
    '"she" refer to Sue? Yes or No?\n'
)
COPA = {"premise": "The cup fell.", "choice1": "It broke.", "choice2": "I'm glad.", "label": 0}
CASES = [
    ("sst2", {"sentence": "a joy ", "label": 1}, "a joy It was", (" terrible", " great"), 1),
    ("sst2", {"text": "a bore", "label": 0}, "a bore It was", (" terrible", " great"), 0),
    (
        "rte",
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
        'It rains.\nDoes this mean that "It is wet." is true? Yes or No?\n',
        YES_NO,
        0,
    ),
    (
        "cb",
        {"premise": "It may rain.", "hypothesis": "it rains", "label": "neutral"},
        'Suppose It may rain. Can we infer that "it rains"? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        2,
    ),
    (
        "boolq",
        {"passage": "Rain is water.", "question": "is rain wet", "label": True},
        "Rain is water. Is rain wet?\n",
        YES_NO,
        0,
    ),
    (
        "boolq",
        {"passage": "Rain is water.", "question": "is rain dry?", "label": 0},
        "Rain is water. Is rain dry?\n",
        YES_NO,
        1,
    ),
    ("wsc", WSC | {"target": SPANS}, WSC_PROMPT, NO_YES, 1),
    ("wsc", WSC | SPANS | {"label": 0}, WSC_PROMPT, NO_YES, 0),
    (
        "wic",
        {"word": "bank", "sentence1": "A river bank.", "sentence2": "A bank.", "label": False},
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\n'
        "A river bank.\nA bank.\n",
        NO_YES,
        0,
    ),
    ("copa", COPA | {"question": "effect"}, "The cup fell so ", ("it broke.", "I'm glad."), 0),
    (
        "copa",
        COPA | {"question": "cause", "choice2": "I dropped it.", "label": 1},
        "The cup fell because ",
        ("it broke.", "I dropped it."),
        1,
    ),
    (
        "subj",
        {"text": "a man finds a map .", "label": 0},
        "a man finds a map . . this is a",
        (" story", " movie"),
        0,
    ),
]


@pytest.mark.parametrize(("name", "example", "prompt", "options", "gold"), CASES)
def test_template_renders_exactly(name, example, prompt, options, gold):
    template = tasks.TEMPLATES[name]
    assert template.render(example) == (prompt, options)
    assert template.gold(example) == gold


def test_only_copa_trains_by_generation():
    losses = {name: template.loss for name, template in tasks.TEMPLATES.items()}
    assert {name for name, loss in losses.items() if loss == "generation"} == {"copa"}


@pytest.mark.parametrize(
    ("label", "gold"),
    [(1, 1), (True, 1), ("great", 1), ("neg", 0), ("terrible", 0), (False, 0)],
)
def test_own_template_reads_every_kind_of_label(label, gold):
    template = tasks.Template(
        "{text} It was", (" terrible", " great"), label="mark", label_names=("neg", "pos")
    )
    assert template.gold({"text": "x", "mark": label}) == gold


def test_functions_of_the_example():
    template = tasks.Template(
        prompt=lambda e: e["q"] + "?",
        options=lambda e: tuple(e["choices"]),
        label=lambda e: e["choices"].index(e["answer"]),
    )
    example = {"q": "How", "choices": [" so", " not", " thus"], "answer": " thus"}
    assert template.render(example) == ("How?", (" so", " not", " thus"))
    assert template.gold(example) == 2


@pytest.mark.parametrize("label", [2, -1, "awful", None, 0.5])
def test_label_outside_the_options(label):
    template = tasks.TEMPLATES["sst2"]
    with pytest.raises(ValueError, match="x:7: label .*' terrible', ' great'") as caught:
        template.gold({"text": "x", "label": label}, "x:7")
    assert repr(label) in str(caught.value)


def test_boolean_label_of_three_options():
    with pytest.raises(ValueError, match="label True"):
        tasks.TEMPLATES["cb"].gold({"premise": "", "hypothesis": "", "label": True})


@pytest.mark.parametrize("name", sorted(tasks.TEMPLATES))
def test_missing_field_is_named(name):
    with pytest.raises(ValueError, match=f"x:7: template '{name}' asks for .* found .*'other'"):
        tasks.TEMPLATES[name].render({"other": 1}, "x:7")


def test_missing_label_is_named():
    with pytest.raises(ValueError, match="x:7: no label field 'label'"):
        tasks.TEMPLATES["subj"].gold({"text": "x"}, "x:7")


def test_bad_templates():
    with pytest.raises(TypeError, match="options .* is the string 'Yes'"):
        tasks.Template("{text}", "Yes")  # pyright: ignore
    with pytest.raises(ValueError, match="loss of template 'custom' is 'nll'"):
        tasks.Template("{text}", ("a",), loss="nll")  # pyright: ignore
    with pytest.raises(ValueError, match="1 label_names for 2 options"):
        tasks.Template("{text}", ("a", "b"), label_names=("x",))
    with pytest.raises(ValueError, match="non-empty"):
        tasks.Template("{text}", ("", "b")).render({"text": "x"})
    with pytest.raises(ValueError, match="no template is called 'sst3'"):
        tasks.find_template("sst3")
