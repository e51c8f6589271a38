"""Every Python example of the documentation runs, and every command line is understood."""

import json
import re
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from zojax import models
from zojax.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The code blocks of a page, each with the line that its code starts on."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """`my-model`, a tiny decoder that reads bytes, and `my-data`, as the pages call them."""
    folder = tmp_path_factory.mktemp("documentation")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = models.parse_config(
        {
            "model_type": "llama",
            "vocab_size": len(vocabulary),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 64,
        }
    )
    models.save(models.Decoder(config, rngs=nnx.Rngs(0)), folder / "my-model")
    tokenizer.save(str(folder / "my-model" / "tokenizer.json"))
    lines = [
        json.dumps({"text": f"Text {i} is {word}.", "label": word})
        for i in range(24)
        for word in ("good", "bad")
    ]
    (folder / "my-data").mkdir()
    (folder / "my-data" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _pages() -> list:
    """Those with examples; the longest of `make test-slow`."""
    slow = {"docs/concepts.md", "docs/objectives.md", "docs/trainables.md"}
    return [
        pytest.param(page, marks=pytest.mark.slow if name(page) in slow else (), id=name(page))
        for page in PAGES
        if blocks(page, "python")
    ]


@pytest.mark.parametrize("page", _pages())
def test_python_examples_run_in_order(page, folders, tmp_path, monkeypatch):
    for source in ("my-model", "my-data"):
        shutil.copytree(folders / source, tmp_path / source)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    for line, code in blocks(page, "python"):
        # as many newlines as there are lines above, so that a traceback names the page's own line
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
    if page.name == "README.md":
        # the first example's objective at the start is 5; see the next test
        assert float(namespace["loss"](namespace["w"])) < 0.5  # type: ignore


def test_the_first_example_has_no_gradient_and_something_to_learn():
    namespace: dict[str, object] = {}
    code = blocks(ROOT / "README.md", "python")[0][1]
    assert len([line for line in code.splitlines() if line]) == 5
    exec(code.partition("vg = ")[0], namespace)
    loss, w = namespace["loss"], jnp.zeros(5)
    assert loss(w) == 5  # type: ignore
    assert not jax.grad(loss)(w).any()  # type: ignore


def command_lines() -> list[tuple[Path, list[str]]]:
    found = []
    for page in PAGES:
        for _, code in blocks(page, "sh"):
            for command in code.replace("\\\n", " ").splitlines():
                words = shlex.split(command, comments=True)
                if words[:1] == ["zojax"] and "demo" not in words:
                    found.append((page, words[1:]))
    return found


@pytest.mark.parametrize(
    "page, words", [pytest.param(p, w, id=f"{name(p)}-{i}") for i, (p, w) in
                    enumerate(command_lines())],
)  # fmt: skip
def test_command_lines_are_understood(page, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where no my-model and no my-data is
    assert main(words) == 1  # flags that do not exist exit with 2
    assert "my-" in capsys.readouterr().err


def test_the_readme_shows_commands():
    assert {words[0] for page, words in command_lines() if page.name == "README.md"} == {
        "finetune",
        "evaluate",
    }
