"""How an example becomes a prompt, its options and the index of the right one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Example = Mapping[str, Any]


class Rendered(NamedTuple):
    """A prompt and the options that may follow it."""

    prompt: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    r"""A prompt, its options and where an example keeps its label.

    >>> template = Template(prompt="{text} It was", options=(" terrible", " great"))
    >>> template.render({"text": "A joy.", "label": 1})
    Rendered(prompt='A joy. It was', options=(' terrible', ' great'))
    >>> template.gold({"text": "A joy.", "label": "great"})
    1

    Attributes:
        prompt: A format string over the fields of an example, or a function of the example.
        options: The texts that may follow the prompt, or a function of the example. An option
            starts right after the prompt, so it brings its own leading space.
        label: The field that holds the label, or a function of the example.
        label_names: What the label field holds for each option, where it is neither the index
            of the option nor its text.
        name: For messages.
        loss: What `option_scoring` should minimise, `"classification"` or `"generation"`.
    """

    prompt: str | Callable[[Example], str]
    options: tuple[str, ...] | Callable[[Example], tuple[str, ...]]
    label: str | Callable[[Example], Any] = "label"
    label_names: tuple[Any, ...] = ()
    name: str = "custom"
    loss: Literal["classification", "generation"] = "classification"

    def __post_init__(self) -> None:
        if isinstance(self.options, str):
            raise TypeError(
                f"options of template {self.name!r} is the string {self.options!r}; expected a "
                f"tuple of strings, such as ({self.options!r},)"
            )
        if self.loss not in ("classification", "generation"):
            raise ValueError(
                f"loss of template {self.name!r} is {self.loss!r}; expected 'classification' or "
                "'generation'"
            )
        if not callable(self.options):
            object.__setattr__(self, "options", tuple(self.options))
            if self.label_names and len(self.label_names) != len(self.options):
                raise ValueError(
                    f"template {self.name!r} has {len(self.label_names)} label_names for "
                    f"{len(self.options)} options; give one a option"
                )

    def render(self, example: Example, where: str = "example") -> Rendered:
        """The prompt of an example and its options.

        Args:
            example: A mapping from field to value.
            where: How messages call the example, such as "train.jsonl:7".

        Returns:
            The prompt and the options.

        Raises:
            ValueError: If the example lacks a field, or an option is empty or no string.
        """
        try:
            if callable(self.prompt):
                prompt = self.prompt(example)
            else:
                prompt = self.prompt.format_map(example)
            options = tuple(self.options(example) if callable(self.options) else self.options)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"{where}: template {self.name!r} asks for the field {error}; found the fields "
                f"{sorted(example)}; rename one, or double the braces that are meant literally"
            ) from error
        if not options or not all(isinstance(option, str) and option for option in options):
            raise ValueError(
                f"{where}: template {self.name!r} gives the options {options!r}; expected "
                "non-empty strings"
            )
        return Rendered(prompt, options)

    def gold(self, example: Example, where: str = "example") -> int:
        """The index of the right option of an example.

        A label that is listed in `label_names` stands for the option in that place; otherwise
        an integer is the index itself, a boolean is index 0 or 1 of two options, and a string
        is the text of an option, surrounding space apart.

        Args:
            example: A mapping from field to value.
            where: How messages call the example, such as "train.jsonl:7".

        Returns:
            An index into the options.

        Raises:
            ValueError: If the example has no label, or one that stands for no option.
        """
        options = self.render(example, where).options
        try:
            label = self.label(example) if callable(self.label) else example[self.label]
        except KeyError as error:
            raise ValueError(
                f"{where}: no label field {error}; found the fields {sorted(example)}; add it, "
                "or name the right field as the template's `label`"
            ) from error
        if label in self.label_names:
            return self.label_names.index(label)
        texts = tuple(option.strip() for option in options)
        if isinstance(label, str) and label.strip() in texts:
            return texts.index(label.strip())
        if isinstance(label, bool):
            index = int(label) if len(options) == 2 else -1
        else:
            index = label if isinstance(label, int) else -1
        if not 0 <= index < len(options):
            names = f" or one of {list(self.label_names)}" if self.label_names else ""
            raise ValueError(
                f"{where}: label {label!r} stands for none of the options {options!r} of "
                f"template {self.name!r}; expected an index below {len(options)}, the text of "
                f"an option{names}"
            )
        return index


def _sst2(example: Example) -> str:
    text = example["sentence"] if "sentence" in example else example["text"]
    return f"{text.strip()} It was"


def _boolq(example: Example) -> str:
    question = example["question"].strip().removesuffix("?")
    return f"{example['passage']} {question[:1].upper()}{question[1:]}?\n"


def _wsc(example: Example) -> str:
    spans = example.get("target", example)
    return (
        f"{example['text']}\nIn the previous sentence, does the pronoun "
        f'"{spans["span2_text"].lower()}" refer to {spans["span1_text"]}? Yes or No?\n'
    )


def _copa_prompt(example: Example) -> str:
    link = {"cause": "because", "effect": "so"}[example["question"]]
    return f"{example['premise'].rstrip().removesuffix('.')} {link} "


def _copa_options(example: Example) -> tuple[str, ...]:
    return tuple(_lower_first(example[field]) for field in ("choice1", "choice2"))


def _lower_first(text: str) -> str:
    alone = text[:1] == "I" and not text[1:2].isalpha()
    return text if alone else text[:1].lower() + text[1:]


_YES_NO = ("Yes", "No")

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template(_sst2, (" terrible", " great"), name="sst2"),
        Template(
            '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
            _YES_NO,
            label_names=("entailment", "not_entailment"),
            name="rte",
        ),
        Template(
            'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
            ("Yes", "No", "Maybe"),
            label_names=("entailment", "contradiction", "neutral"),
            name="cb",
        ),
        Template(_boolq, _YES_NO, label_names=(True, False), name="boolq"),
        Template(_copa_prompt, _copa_options, name="copa", loss="generation"),
        Template(
            'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n'
            "{sentence1}\n{sentence2}\n",
            ("No", "Yes"),
            label_names=(False, True),
            name="wic",
        ),
        Template(_wsc, ("No", "Yes"), label_names=(False, True), name="wsc"),
        Template("{text} . this is a", (" story", " movie"), name="subj"),
    )
}
