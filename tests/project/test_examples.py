"""The examples run and reach what they show."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_rounded_network_learns_without_a_gradient(capsys):
    # a linear classifier trained by backpropagation reaches about 96 %; chance is 10 %
    assert _load("rounded_network").main() >= 0.8
    assert "largest derivative by the first layer: 0.0" in capsys.readouterr().out
