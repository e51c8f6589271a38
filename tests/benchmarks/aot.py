"""Memory of one training step of Llama 2 7B in bfloat16 on an H200, compiled without the GPU.

A step is a two-sided estimate and its update with stochastic rounding, the parameters donated;
"plain_jax" is `params + mu * z` with `jax.random.normal`, rounded to nearest. Arguments and
temporaries in GiB, from `compile().memory_analysis()`; nothing is allocated and nothing is run.

Needs the CUDA plugin of the very version of jax, but no CUDA and no NVIDIA library:
`pip install --no-deps jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION`.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from tests.benchmarks import llama
from tests.benchmarks.steps import DIRECTIONS, plain_step, step
from tests.benchmarks.table import finish, parse, show
from zojax.planning import missing, target_device

_GIB = 2**30


def memory(fn: Callable, *args: Any, donate: tuple[int, ...] = ()) -> dict[str, float]:
    """GiB of a compiled function: arguments, temporaries, and both with outputs of their own."""
    start = time.perf_counter()
    compiled = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
    seconds = time.perf_counter() - start
    found = compiled.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    total = found.argument_size_in_bytes + found.temp_size_in_bytes + outputs
    return {
        "arguments": found.argument_size_in_bytes / _GIB,
        "temporaries": found.temp_size_in_bytes / _GIB,
        "total": total / _GIB,
        "compile_seconds": seconds,
    }


def measure(shape: llama.Shape, names: list[str], target: Any) -> dict[str, dict[str, float]]:
    """Memory of the forward and of each step."""
    sharding = SingleDeviceSharding(target)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, batch, key = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (llama.parameters(shape), llama.batch(shape), key),
    )
    loss = functools.partial(llama.loss, heads=shape.heads)
    result = {}
    for name in names:
        if name == "forward":
            result[name] = memory(loss, params, batch)
            continue
        fn = plain_step(loss) if name == "plain_jax" else step(loss, DIRECTIONS[name]())
        result[name] = memory(fn, params, key, batch, donate=(0,))
    return result


def main() -> None:
    def add(parser):
        parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])

    args = parse(__doc__ or "", add)
    if reason := missing():
        raise SystemExit(reason)
    target = target_device("h200")
    names = ["forward", "low_rank", "rademacher", "plain_jax"]
    # a smaller model compiles no faster: fewer programs do
    batches, names = ([1], names[:2]) if args.small else (args.batches, names)
    result, rows = {}, []
    for batch in batches:
        shape = llama.Shape(batch=batch)
        label = f"{batch}x{shape.length}"
        result[label] = measure(shape, names, target)
        rows += [[f"{label} {name}", *found.values()] for name, found in result[label].items()]
    show(rows, ["GiB", "arguments", "temporaries", "total", "compiled in s"])
    finish(args, result)


if __name__ == "__main__":
    main()
