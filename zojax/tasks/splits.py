"""Train, dev and test examples of a folder of JSON Lines files."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from zojax.tasks._random import permutation
from zojax.tasks.jsonl import read_numbered
from zojax.tasks.templates import TEMPLATES, Template

_TEST_NAMES = (r"test", r"val", r"validation", r"dev")
_DEV_NAMES = (r"dev", r"val", r"validation", r"dev\d+")
_TRAIN_NAMES = (r"train", r"train\d+")
_TRAIN, _DEV, _TEST = range(3)


class Splits(NamedTuple):
    """Examples to train on, to choose by and to report on; no example is in two of them."""

    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    test: list[dict[str, Any]]


class _Pool(NamedTuple):
    path: Path
    examples: list[dict[str, Any]]
    keys: list[Any]


def load_splits(
    template: Template | str,
    folder: str | os.PathLike[str],
    num_train: int = 1000,
    num_dev: int = 500,
    num_test: int = 1000,
    seed: int = 0,
) -> Splits:
    r"""Draws a train, a dev and a test split from the JSON Lines files of a folder.

    Each split is drawn without replacement from the first of these files that exists:

    * test: `test`, `val`, `validation`, `dev` (`.jsonl`), a file without labels passed over;
    * dev: `dev`, `val`, `validation`, `dev32` (any number), the file of the test split apart;
    * train: `train`, `train32` (any number).

    A dev or test split without a file is cut out of the train file, at most half of it (a third
    each if both are cut). Two examples with the same prompt and options count as one example:
    what is in test is kept out of dev and train, and what is in dev is kept out of train, also
    between files. The result depends on the files and on `seed` alone, and the test split does
    not depend on `num_train` and `num_dev`.

    Args:
        template: A template, or the name of one in `TEMPLATES`.
        folder: Where the files are.
        num_train: At most how many examples to train on.
        num_dev: At most how many dev examples.
        num_test: At most how many test examples.
        seed: Which draw.

    Returns:
        The three splits, in random order.

    Raises:
        FileNotFoundError: If the folder or its train file is missing.
        ValueError: If a number is negative, a file is malformed, a label stands for no option
            or a split would be empty.
    """
    template = find_template(template)
    folder = Path(folder)
    if min(num_train, num_dev, num_test, seed) < 0:
        raise ValueError(
            f"num_train={num_train}, num_dev={num_dev}, num_test={num_test}, seed={seed}: "
            "expected none below zero"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with train.jsonl")
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    train_path = _first(files, _TRAIN_NAMES)
    if train_path is None:
        raise FileNotFoundError(
            f"{folder}: no train.jsonl; found {sorted(path.name for path in files.values())}"
        )
    train = _read_pool(train_path, template)

    test = None
    for name in _TEST_NAMES:
        if name in files and _has_labels(files[name], template):
            test = _read_pool(files.pop(name), template)
            break
    dev_path = _first({k: v for k, v in files.items() if v != train_path}, _DEV_NAMES)
    dev = _read_pool(dev_path, template) if dev_path and _has_labels(dev_path, template) else None

    cut = len(train.examples) // (1 + (test is None) + (dev is None))
    if test is None:
        test, num_test = train, min(num_test, cut)
    if dev is None:
        dev, num_dev = train, min(num_dev, cut)
    taken: set[Any] = set()
    drawn = {}
    for which, pool, num in (
        (_TEST, test, num_test),
        (_DEV, dev, num_dev),
        (_TRAIN, train, num_train),
    ):
        drawn[which] = _draw(pool, num, taken, seed, which)
    return Splits(drawn[_TRAIN], drawn[_DEV], drawn[_TEST])


def find_template(template: Template | str) -> Template:
    """The template itself, or the one of that name in `TEMPLATES`.

    Args:
        template: A template or a name.

    Returns:
        The template.

    Raises:
        ValueError: If there is none of that name.
    """
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise ValueError(
            f"no template is called {template!r}; expected one of {sorted(TEMPLATES)}, or a "
            "Template of your own"
        )
    return TEMPLATES[template]


def _first(files: dict[str, Path], names: tuple[str, ...]) -> Path | None:
    for name in names:
        for stem, path in files.items():
            if re.fullmatch(name, stem):
                return path
    return None


def _has_labels(path: Path, template: Template) -> bool:
    """Whether the first example has a label; published test sets have none, or -1."""
    if callable(template.label):
        return True
    return read_numbered(path)[0][1].get(template.label, -1) not in (-1, None)


def _read_pool(path: Path, template: Template) -> _Pool:
    examples, keys = [], []
    for number, example in read_numbered(path):
        where = f"{path}:{number}"
        template.gold(example, where)
        examples.append(example)
        keys.append(template.render(example, where))
    return _Pool(path, examples, keys)


def _draw(pool: _Pool, num: int, taken: set[Any], seed: int, which: int) -> list[dict[str, Any]]:
    """At most `num` examples of a pool that are not taken yet; then takes them."""
    order = permutation(len(pool.examples), seed, which)
    free = [i for i in order.tolist() if pool.keys[i] not in taken][:num]
    taken.update(pool.keys[i] for i in free)
    if num and not free:
        raise ValueError(
            f"{pool.path}: all {len(pool.examples)} examples went to other splits; add examples"
        )
    return [pool.examples[i] for i in free]
