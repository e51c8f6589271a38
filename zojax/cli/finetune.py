"""The commands `finetune` and `evaluate`, as functions of their configuration."""

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import tasks, training
from zojax.cli import base, build, method
from zojax.cli.config import Evaluate, Finetune
from zojax.estimators import num_queries
from zojax.trainables import Split, size
from zojax.virtual import virtualize

_NOT_IN_MANIFEST = ("out", "resume", "progress")


def finetune(config: Finetune) -> dict[str, Any]:
    """Fine-tune a model and write its adapter, journal, metrics and picture.

    Args:
        config: the run.

    Returns:
        The result, also in `out/result.json`: accuracies before and after and the loss after on the
        test split, seconds a step, memory of a step, sizes, and "status".

    Raises:
        FileNotFoundError, FileExistsError, ValueError: on bad input; nothing is half-written.
    """
    template = build.template_of(config.task)
    splits = build.splits_of(config.task, template)
    loaded, split = method.prepare(config, template, splits)
    train, dev, test = _encode(loaded, splits)
    manifest = _manifest(config, loaded.params)
    return run(config, manifest, loaded, split, train, dev, test)


def run(
    config: Finetune,
    manifest: dict[str, Any],
    loaded: build.Loaded,
    split: Split,
    train: tasks.Encoded,
    dev: tasks.Encoded,
    test: tasks.Encoded,
) -> dict[str, Any]:
    """Train on data that is already encoded, and report; the part that the demo shares."""
    problem = loaded.problem
    settings = config.optimizer, config.method
    estimator = method.estimator_of(*settings, split.trainable)
    optimizer, optimizer_name, rate = method.optimizer_of(*settings, config.steps, split.trainable)
    functions = training.training_functions(problem, split.merge, estimator, optimizer)
    batch_at = build.batch_at(train, config.batch_size, config.seed)
    # what cannot be traced must fail before anything is written
    jax.eval_shape(functions.ask, _abstract(functions, split), split.frozen, batch_at(0))
    folder = training.RunFolder(config.out, manifest, config.resume)
    try:
        print(
            f"{size(split.trainable):,} of {base.count(loaded.params):,} parameters move; "
            f"{optimizer_name}, learning rate {rate:.3g}, mu {method.mu_of(*settings):g}, "
            f"{num_queries(estimator)} queries a step; results in {config.out}",
            flush=True,
        )
        before = _measure(functions, problem, split, split.trainable, test, config.batch_size)
        fitted = training.fit(
            functions,
            problem,
            split,
            estimator,
            batch_at=batch_at,
            held_out=lambda: tasks.eval_batches(dev, config.batch_size),
            schedule=training.Schedule(config.steps, config.eval_every, config.checkpoint_every),
            key=jax.random.key(config.seed),
            folder=folder,
            progress=config.progress,
        )
        longest = np.argsort(train.longest, kind="stable")[-config.batch_size :]
        memory = training.step_memory(
            functions, problem, split.merge, fitted.state, split.frozen, tasks.take(train, longest)
        )
        after = _measure(functions, problem, split, fitted.best, test, config.batch_size)
        metadata = {"manifest": manifest, "base": manifest["model"], "step": fitted.best_step}
        adapter = training.make_adapter(split, fitted.best, metadata)
        adapter_bytes = training.save_adapter(adapter, folder.path / "adapter.safetensors")
        result = {
            "status": fitted.status,
            "accuracy_before": round(before.accuracy, 4),
            "accuracy_after": round(after.accuracy, 4),
            "accuracy_gain": round(after.accuracy - before.accuracy, 4),
            "loss_after": after.loss,
            "test_examples": after.count,
            "best_step": fitted.best_step,
            "steps": int(fitted.state.step),
            "seconds_per_step": round(fitted.seconds_per_step, 4),
            "trainable_parameters": size(split.trainable),
            "parameters": base.count(loaded.params),
            "parameter_bytes": base.nbytes(loaded.params),
            "forward_bytes": memory.forward,
            "step_bytes": memory.zeroth_order,
            "backprop_bytes": memory.backward,
            "memory_ratio_to_forward": round(memory.ratio_to_forward, 3),
            "adapter_bytes": adapter_bytes,
            "journal_bytes": (folder.path / "journal.bin").stat().st_size,
            "out": str(config.out),
        }
        title = (
            f"{config.method}: {before.accuracy:.1%} to {after.accuracy:.1%} on test "
            f"in {int(fitted.state.step)} steps"
        )
        rows = training.read_metrics(folder.path / "metrics.jsonl")
        training.draw_report(rows, folder.path / "report.png", title, memory)
        _write_json(folder.path / "result.json", result)
        return result
    finally:
        folder.close()


def evaluate(config: Evaluate) -> dict[str, Any]:
    """Measure a model on a task, as it is or with an adapter.

    Args:
        config: what to measure.

    Returns:
        {"accuracy", "loss", "examples"}.

    Raises:
        FileNotFoundError, ValueError: on bad input, or an adapter of another model.
    """
    template = build.template_of(config.task)
    splits = build.splits_of(config.task, template)
    if config.adapter is None:
        loaded = build.load(config.model, "stored", config.task, template)
        params = loaded.params
    else:
        loaded, params, _ = build.load_tuned(
            config.model, config.adapter, config.task, template, config.scores
        )
    data = loaded.encode(getattr(splits, config.split))
    predict = jax.jit(virtualize(loaded.problem.logits))
    measured = training.evaluate(
        lambda batch: predict(params, batch),
        loaded.problem.example_losses,
        tasks.eval_batches(data, config.batch_size),
    )
    return {
        "accuracy": round(measured.accuracy, 4),
        "loss": measured.loss,
        "examples": measured.count,
    }


def _encode(loaded: build.Loaded, splits: tasks.Splits) -> list[tasks.Encoded]:
    """The three splits, encoded at once so that what was cut is said once."""
    data = loaded.encode([*splits.train, *splits.dev, *splits.test])
    ends = np.cumsum([0, *map(len, splits)])
    return [
        dataclasses.replace(
            data, **{k: v[begin:end] for k, v in vars(data).items() if v is not None}
        )
        for begin, end in itertools.pairwise(ends)
    ]


def _abstract(functions: training.Functions, split: Split) -> training.TrainState:
    return jax.eval_shape(lambda t: functions.init(t, jax.random.key(0)), split.trainable)


def _measure(functions, problem, split: Split, trainable, data, batch_size) -> training.Metrics:
    return training.evaluate(
        lambda batch: functions.predict(trainable, split.frozen, batch),
        problem.example_losses,
        tasks.eval_batches(data, batch_size),
    )


def _manifest(config: Finetune, params: Any) -> dict[str, Any]:
    """What a resumed run must share: every setting, and the model itself."""
    settings = dataclasses.asdict(config)
    for name in _NOT_IN_MANIFEST:
        settings.pop(name)
    settings["model_folder"] = settings.pop("model").name
    plain = json.loads(json.dumps(settings, default=_plain))
    return {"model": training.fingerprint(params), **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (np.generic, jnp.ndarray)):
        return value.item()
    return str(value)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)
