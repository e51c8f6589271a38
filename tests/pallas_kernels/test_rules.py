"""Rules follow tables of measured times; nothing measured means plain JAX."""

import json
import os
import time
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from pallas_kernels import _autotune
from pallas_kernels._autotune import Entry
from pallas_kernels.perturbed_matmul import TpuBlocks, select
from pallas_kernels.perturbed_matmul.config import tpu_blocks, tpu_candidates, vmem_bytes

TPU = "TPU v9x"


def _entry(rows, xla, tpu, k=4096, n=4096, dtype="bfloat16", kind="rademacher"):
    ms, config = {"xla": xla, "tpu": tpu}, {"tpu": {"m": rows, "k": 512, "n": 512, "p": 1}}
    return Entry(rows, k, n, dtype, kind, ms, config)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOJAX_KERNELS", str(tmp_path))
    return tmp_path


def _select(rows, kind="rademacher", dtype=jnp.bfloat16, device=TPU, k=4096, n=4096):
    return select(rows=rows, k=k, n=n, dtype=dtype, distribution=kind, device_kind=device)


def test_the_fastest_of_the_nearest_problem_is_chosen(folder):
    entries = [_entry(16, 0.3, 0.1), _entry(256, 0.4, 0.3), _entry(1024, 0.5, 0.9)]
    path = _autotune.store("perturbed_matmul", TPU, entries)
    assert path == folder / "perturbed_matmul" / "TPU_v9x.json"
    found = _select(16)
    assert found.implementation == "tpu"
    assert TpuBlocks(**found.config) == (16, 512, 512, 1)
    assert "xla 0.3 ms, tpu 0.1 ms on a TPU v9x (16 rows" in found.reason
    assert [_select(rows).implementation for rows in (8, 300, 900, 2048)] == [
        "tpu", "tpu", "xla", "xla",
    ]  # fmt: skip
    assert _select(1024).config is None


def test_a_size_decides_between_equal_rows(folder):
    entries = [_entry(16, 1.0, 2.0, k=512, n=512), _entry(16, 2.0, 1.0, k=8192, n=8192)]
    _autotune.store("perturbed_matmul", TPU, entries)
    assert _select(16, k=600, n=700).implementation == "xla"
    assert _select(16, k=4096, n=11008).implementation == "tpu"


def test_what_was_not_measured_is_plain_jax(folder):
    assert _select(16) == (
        "xla",
        "perturbed_matmul of bfloat16 was not measured on a TPU v9x",
        None,
    )
    _autotune.store("perturbed_matmul", TPU, [_entry(64, 2.0, 1.0)])
    assert _select(64).implementation == "tpu"
    assert _select(64, kind="gaussian").implementation == "tpu"  # as another distribution
    assert "float32 was not measured" in _select(64, dtype=jnp.float32).reason
    assert "was not measured on a TPU v8" in _select(64, device="TPU v8").reason
    assert _select(31).reason == _select(129).reason.replace("129", "31")
    assert "129 rows are far from any" in _select(129).reason
    assert _select(64, device="cpu") == ("xla", "the kernels are for GPUs and TPUs", None)


def test_a_table_is_read_again_when_it_changes(folder):
    _autotune.store("perturbed_matmul", TPU, [_entry(16, 1.0, 2.0)])
    assert _select(16).implementation == "xla"
    path = _autotune.store("perturbed_matmul", TPU, [_entry(16, 2.0, 1.0)])
    stamp = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))
    assert _select(16).implementation == "tpu"


GOOD = {"operation": "perturbed_matmul", "entries": [_entry(1, 1.0, 2.0)._asdict()]}


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is no JSON"),
        ([], 'an object with a list "entries"'),
        (GOOD | {"operation": "other"}, "table of 'other', expected 'perturbed_matmul'"),
        (GOOD | {"entries": [{"rows": 1}]}, "entry 0 must have exactly rows, k, n.*found rows"),
        (
            GOOD | {"entries": [GOOD["entries"][0] | {"k": "a"}]},
            "entry 0: k must be int, found 'a'",
        ),
        (GOOD | {"entries": [GOOD["entries"][0] | {"ms": {}}]}, "ms must hold numbers"),
    ],
)
def test_what_is_no_table_is_an_error_that_names_the_file(folder, content, message):
    path = _autotune.table_paths("perturbed_matmul", TPU)[0]
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"TPU_v9x.json.*{message}.*measure again"):
        _select(16)


def test_times_are_of_the_fastest_candidate_that_runs(capsys):
    def fail(*_):
        raise RuntimeError("out of vector memory")

    def lowered(call=lambda x: x, compile_=None):
        return lambda: SimpleNamespace(compile=compile_ or (lambda: call))

    blocks = TpuBlocks(1, 2, 3, 4)
    ms, config = _autotune.fastest(
        {
            "xla": [(None, lowered())],
            "tpu": [(blocks, lowered(lambda x: time.sleep(0.01))), (blocks, fail)],
            "gpu": [(1, lowered(fail)), (2, lowered(compile_=fail))],
        },
        (1.0,),
        repetitions=3,
    )
    assert set(ms) == {"xla", "tpu"} and ms["tpu"] >= 10 > ms["xla"]
    assert config == {"tpu": blocks._asdict()}
    assert capsys.readouterr().out.count("out of vector memory") == 3


@pytest.mark.parametrize("rows", [1, 16, 129, 4096])
@pytest.mark.parametrize("directions, queries", [(1, 1), (1, 2), (16, 2), (12, 8)])
@pytest.mark.parametrize("k, n", [(4096, 11008), (11008, 4096), (100, 7), (5000, 32000)])
def test_blocks_fit_in_vector_memory(rows, directions, queries, k, n):
    for item in (2, 4):
        sizes = (directions, queries, rows, k, n, item, item)
        for blocks in tpu_candidates(*sizes):
            assert vmem_bytes(blocks, queries, item, item) < 48 * 2**20
            assert directions % blocks.p == 0 and min(blocks) >= 1
            # tiles of (8, 128) or whole axes
            assert blocks.m % 8 == 0 or blocks.m == rows
            assert all(b % 128 == 0 or b == s for b, s in ((blocks.k, k), (blocks.n, n)))
        assert tpu_candidates(*sizes)[0] == tpu_blocks(*sizes)
    # no masked edge along the sum where a large divisor avoids it
    if k % 256 == 0:
        assert k % tpu_blocks(1, 2, 16, k, n, 2, 2).k == 0
