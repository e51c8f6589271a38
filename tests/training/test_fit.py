import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.problem import (
    PROBLEM,
    assert_same_state,
    batch_at,
    build,
    example_losses,
    held_out,
    loss,
)
from zojax.training import (
    Checkpoints,
    NonFiniteLossError,
    Problem,
    RunFolder,
    Schedule,
    evaluate,
    fit,
    read_metrics,
)

ROOT = Path(__file__).parents[2]


def _fit(folder, steps=12, resume=False, functions=None, batch=batch_at, checkpoint_every=5):
    made, split, estimator = build()
    run_folder = RunFolder(folder, {"model": "blobs"}, resume)
    try:
        return fit(
            functions or made,
            PROBLEM,
            split,
            estimator,
            batch_at=batch,
            held_out=held_out,
            schedule=Schedule(steps, eval_every=4, checkpoint_every=checkpoint_every),
            key=jax.random.key(0),
            folder=run_folder,
            progress=False,
        )
    finally:
        run_folder.close()


def test_the_loop_learns_and_writes_what_it_did(tmp_path):
    result = _fit(tmp_path / "run", steps=150)
    assert result.status == "finished"
    assert result.after.loss < result.before.loss
    # two blobs 2 apart along each of 4 axes: the Bayes accuracy is Phi(2) = 97.7 %
    assert result.after.accuracy >= 15 / 16
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in rows if "loss" in r] == list(range(150))


def test_an_interrupted_run_resumes_to_the_same_parameters_bit_for_bit(tmp_path):
    whole = _fit(tmp_path / "whole")
    _fit(tmp_path / "parts", steps=7)
    resumed = _fit(tmp_path / "parts", steps=12, resume=True)
    assert_same_state(resumed.state, whole.state)


def test_a_resumed_run_still_knows_its_best_step(tmp_path):
    def worse_later(step):
        batch = batch_at(step)
        return batch if step < 8 else {**batch, "label": 1 - batch["label"]}

    whole = _fit(tmp_path / "whole", steps=40, batch=worse_later)
    assert 0 < whole.best_step < 20
    _fit(tmp_path / "parts", steps=24, batch=worse_later)
    resumed = _fit(tmp_path / "parts", steps=40, resume=True, batch=worse_later)
    assert (resumed.best_step, resumed.before, resumed.after) == (
        whole.best_step,
        whole.before,
        whole.after,
    )
    for a, b in zip(jax.tree.leaves(resumed.best), jax.tree.leaves(whole.best), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", [3, 5, 8])
def test_steps_after_the_last_checkpoint_come_back_from_the_journal(tmp_path, killed_at):
    whole = _fit(tmp_path / "whole")

    def dying(step):
        if step == killed_at:
            raise _Killed
        return batch_at(step)

    with pytest.raises(_Killed):
        _fit(tmp_path / "parts", batch=dying)
    asked = []

    def counting(step):
        asked.append(step)
        return batch_at(step)

    resumed = _fit(tmp_path / "parts", resume=True, batch=counting)
    assert asked == list(range(killed_at, 12))
    assert_same_state(resumed.state, whole.state)


def test_sigkill_in_another_process_loses_nothing(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from tests.training import test_fit
        from tests.training.problem import batch_at

        def dying(step):
            if step == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return batch_at(step)

        test_fit._fit(sys.argv[1], batch=dying)
        """
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], env=env)
    assert child.returncode == -signal.SIGKILL
    resumed = _fit(tmp_path / "run", resume=True)
    assert_same_state(resumed.state, _fit(tmp_path / "whole").state)


def test_sigterm_checkpoints_and_stops(tmp_path):
    def interrupting(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_at(step)

    before = signal.getsignal(signal.SIGTERM)
    result = _fit(tmp_path / "run", batch=interrupting)
    assert result.status == "interrupted"
    assert int(result.state.step) == 7
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = _fit(tmp_path / "run", resume=True)
    assert_same_state(resumed.state, _fit(tmp_path / "whole").state)


def test_a_nan_loss_names_the_step_and_what_to_try_and_keeps_the_step_before(tmp_path):
    def poisoned(params, batch):
        return loss(params, batch) + jnp.where(batch["x"][0, 0] > 1e6, jnp.nan, 0.0)

    functions, split, estimator = build(problem=Problem(poisoned, PROBLEM.logits, example_losses))

    def batch(step):
        data = batch_at(step)
        if step == 3:
            data["x"][0, 0] = 1e7
        return data

    with pytest.raises(NonFiniteLossError, match=r"step 3: the loss is nan.*learning rate"):
        _fit(tmp_path / "run", functions=functions, batch=batch)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    kept = checkpoints.restore(functions.init(split.trainable, jax.random.key(0)))
    checkpoints.close()
    assert kept is not None and int(kept.step) == 3
    assert all(np.isfinite(x).all() for x in map(np.asarray, jax.tree.leaves(kept.trainable)))


def test_no_retrace_across_steps_and_restored_states(tmp_path):
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss(params, batch)

    functions, *_ = build(problem=Problem(counted, PROBLEM.logits, example_losses))
    _fit(tmp_path / "run", functions=functions, steps=6)
    first = len(traces)
    _fit(tmp_path / "run", functions=functions, steps=10, resume=True)
    assert len(traces) == first


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    functions, split, _ = build()
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(functions.init(split.trainable, jax.random.key(0)))
    other, split, _ = build(optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="another model, method or optimizer"):
        checkpoints.restore(other.init(split.trainable, jax.random.key(0)))
    checkpoints.close()


def test_evaluate_counts_only_valid_examples():
    batch = {"x": np.zeros((3, 4), np.float32), "label": np.array([0, 1, 1], np.int32)}
    scores = jnp.array([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0]])
    found = evaluate(lambda b: scores, example_losses, [(batch, np.array([True, True, False]))])
    expected = np.log1p(np.exp(-np.array([2.0, 3.0]))).mean()
    assert found.count == 2 and found.accuracy == 1.0
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="no example"):
        evaluate(lambda b: scores, example_losses, [])


def test_the_output_folder_has_one_writer_and_one_run(tmp_path):
    folder = RunFolder(tmp_path / "run", {"model": "a", "task": "x"}, resume=False)
    with pytest.raises(FileExistsError, match="another run writes"):
        RunFolder(tmp_path / "run", {"model": "a", "task": "x"}, resume=True)
    folder.close()
    with pytest.raises(FileExistsError, match="holds a run"):
        RunFolder(tmp_path / "run", {"model": "a", "task": "x"}, resume=False)
    with pytest.raises(ValueError, match="'model' was 'a' and is now 'b'.*task"):
        RunFolder(tmp_path / "run", {"model": "b", "task": "y"}, resume=True)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        RunFolder(tmp_path / "new", {"model": "a"}, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="in use"):
        RunFolder(tmp_path / "full", {"model": "a"}, resume=False)
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == [".lock", "thesis.tex"]


def test_metrics_survive_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 0, "loss": 1.0}) + '\n{"step": 1, "lo')
    assert read_metrics(path) == [{"step": 0, "loss": 1.0}]
    _fit(tmp_path / "run", steps=2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b'{"step": 2, "lo')
    _fit(tmp_path / "run", steps=4, resume=True)
    assert [r["step"] for r in read_metrics(metrics) if "loss" in r] == [0, 1, 2, 3]
