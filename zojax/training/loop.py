"""The loop around the step functions: progress, evaluation, journal, checkpoints, signals."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import jax
import numpy as np
from tqdm import tqdm

from zojax.estimators import AnyEstimator, num_coefficients
from zojax.trainables import Split
from zojax.training.checkpoint import Checkpoints
from zojax.training.functions import Functions, Metrics, Problem, TrainState, evaluate
from zojax.training.journal import Journal, Record, replay
from zojax.training.report import read_metrics
from zojax.training.run_folder import RunFolder


class NonFiniteLossError(FloatingPointError):
    """A query returned NaN or infinity; the parameters are those before that step."""


class Schedule(NamedTuple):
    """When things happen, in steps."""

    steps: int
    eval_every: int
    checkpoint_every: int


class FitResult(NamedTuple):
    """What a run came to.

    Attributes:
        state: after the last step.
        best: trainables with the lowest held-out loss.
        best_step: the step they are of.
        before, after: held-out metrics at step 0 and of `best`.
        seconds_per_step: median, without evaluation.
        status: "finished", or "interrupted" by SIGTERM or SIGINT after a checkpoint.
    """

    state: TrainState
    best: Any
    best_step: int
    before: Metrics
    after: Metrics
    seconds_per_step: float
    status: Literal["finished", "interrupted"]


def fit(
    functions: Functions,
    problem: Problem,
    split: Split,
    estimator: AnyEstimator,
    *,
    batch_at: Callable[[int], Any],
    held_out: Callable[[], Iterable[tuple[Any, np.ndarray]]],
    schedule: Schedule,
    key: jax.Array,
    folder: RunFolder,
    progress: bool = True,
) -> FitResult:
    """Train, or go on training.

    Every step is in the journal before it is applied; a run that is killed at any moment goes on
    from the last checkpoint plus the journal, to the same parameters as without the interruption.

    Args:
        functions: of `training_functions` with the same estimator.
        problem: loss and predictions.
        split: trainable, frozen, merge.
        estimator: for the journal's number of directions.
        batch_at: the batch of a step; a pure function, so that a resumed run sees the same ones.
        held_out: fresh iterable of `(batch, valid)`.
        schedule: when to stop, evaluate and checkpoint.
        key: typed key.
        folder: where the journal, the metrics and the checkpoints are.
        progress: whether to show a progress bar.

    Returns:
        `FitResult`.

    Raises:
        NonFiniteLossError: if a loss is NaN or infinite; says at which step and what to try.
    """
    state = functions.init(split.trainable, key)
    checkpoints = Checkpoints(folder.path / "checkpoints")
    run = {"trainables": len(jax.tree.leaves(split.trainable))}
    journal = Journal(folder.path / "journal.bin", num_coefficients(estimator), run)
    metrics = _open_lines(folder.path / "metrics.jsonl")

    def log(row: dict[str, Any]) -> None:
        metrics.write(json.dumps(row) + "\n")
        metrics.flush()

    def measure(state: TrainState) -> Metrics:
        found = evaluate(
            lambda batch: functions.predict(state.trainable, split.frozen, batch),
            problem.example_losses,
            held_out(),
        )
        log(
            {
                "step": int(state.step),
                "dev_loss": found.loss,
                "dev_accuracy": found.accuracy,
                "dev_examples": found.count,
            }
        )
        return found

    restored = checkpoints.restore(state)
    state = replay(functions, state if restored is None else restored, journal.records)
    best, best_step, before, after = _history(
        functions, split, key, state, journal.records, folder, measure
    )
    seconds: list[float] = []
    status: Literal["finished", "interrupted"] = "finished"
    bar = tqdm(total=schedule.steps, initial=int(state.step), disable=not progress, unit="step")
    with _stop_requests() as stop, contextlib.ExitStack() as closing:
        for resource in (metrics, journal, checkpoints, bar):
            closing.callback(resource.close)
        while int(state.step) < schedule.steps:
            if stop.is_set():
                status = "interrupted"
                break
            step, start = int(state.step), time.perf_counter()
            found = functions.ask(state, split.frozen, batch_at(step))
            coefficients, value = np.asarray(found.coefficients), float(found.value)
            if not (np.isfinite(value) and np.isfinite(coefficients).all()):
                checkpoints.save(state)
                raise NonFiniteLossError(
                    f"step {step}: the loss is {value}, the coefficients {coefficients[:4]}; the "
                    "parameters of the step before are kept. Try a smaller learning rate, a "
                    "smaller mu, or a longer warm-up; with float16, bfloat16 or float32"
                )
            journal.append(Record(step, np.asarray(found.keys), coefficients))
            state = functions.apply(state, found.keys, found.coefficients)
            jax.block_until_ready(state.trainable)
            seconds.append(time.perf_counter() - start)
            log({"step": step, "loss": value, "seconds": round(seconds[-1], 4)})
            bar.update()
            bar.set_postfix(loss=f"{value:.3f}", accuracy=f"{after.accuracy:.1%}", refresh=False)
            done = step + 1
            if done % schedule.eval_every == 0 or done == schedule.steps:
                current = measure(state)
                if current.loss < after.loss:
                    best, best_step, after = _copy(state.trainable), done, current
            if done % schedule.checkpoint_every == 0:
                checkpoints.save(state)
        checkpoints.save(state)
    per_step = float(np.median(seconds)) if seconds else float("nan")
    return FitResult(state, best, best_step, before, after, per_step, status)


def _history(functions, split, key, state, records, folder, measure):
    """(best trainables, their step, first and best metrics); a resumed run finds its old best."""
    here = int(state.step)
    rows = read_metrics(folder.path / "metrics.jsonl")
    seen = {r["step"]: r for r in rows if "dev_loss" in r and r["step"] <= here}
    if here not in seen:
        measure(state)
        seen |= {r["step"]: r for r in read_metrics(folder.path / "metrics.jsonl")[-1:]}
    best_step = min(seen, key=lambda step: (seen[step]["dev_loss"], step))
    found = state
    if best_step != here:
        earlier = [r for r in records if r.step < best_step]
        found = replay(functions, functions.init(split.trainable, key), earlier)

    def metrics(step):
        row = seen[step]
        return Metrics(row["dev_loss"], row["dev_accuracy"], row["dev_examples"])

    return _copy(found.trainable), best_step, metrics(min(seen)), metrics(best_step)


def _open_lines(path: Path) -> TextIO:
    """Open for appending; a last line that a crash tore is cut off."""
    if path.exists():
        data = path.read_bytes()
        path.write_bytes(data[: data.rfind(b"\n") + 1])
    return path.open("a")


def _copy(tree: Any) -> Any:
    # `apply` donates the state, so what outlives a step must be a copy
    return jax.tree.map(lambda x: x.copy(), tree)


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; a second SIGINT interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum, frame):
        if stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    previous = {s: signal.signal(s, request) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
