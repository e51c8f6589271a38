"""Time and memory of training steps of Llama 2 7B in bfloat16 on a GPU.

A step is a two-sided estimate and its SGD update, parameters donated, through the public API, with
random weights; "in_place" is MeZO's loop: +mu, -2 mu, +mu and the update are four sweeps that draw
the noise again and write the parameters in place. "both" asks both sides in one pass over the
weights; "nf4" and "int4" are over layers of that format; "xla" takes no kernel, "kernel" takes
one wherever it can, the others what the library chooses by itself.

All programs are compiled first, in threads of one process, and stored. Each case then runs in a
process of its own: its peak is what the allocator reports after the first steps, and its times are
interleaved with those of two forward passes in the same process. `--layers` shortens the model,
`--seconds` is a limit after which what is left is not begun; results are printed as they come.
"""

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks import device_cases, llama
from tests.benchmarks.device_cases import CASES
from tests.benchmarks.table import finish, parse, show

TOKENS = ["1x256", "1x16", "4x1024", "1x1024", "1x128"]
_SMALL = llama.Shape(layers=2, width=256, hidden=512, heads=8, vocabulary=1024)
_GIB = 2**30


def shape_of(args: Any, tokens: str) -> llama.Shape:
    """The model and a batch such as "1x256"."""
    batch, length = map(int, tokens.split("x"))
    shape = _SMALL if args.small else llama.Shape()
    if args.layers:
        shape = shape._replace(layers=args.layers)
    return shape._replace(batch=batch, length=length)


def plan(args: Any) -> list[tuple[str, str]]:
    """(case, tokens) to compile: all cases of the first tokens named, forward passes first."""
    bases = {CASES[c].base for c in args.cases}
    forwards = [c for c in ("forward", "forward_nf4", "forward_int4") if CASES[c].base in bases]
    cases = [*forwards, *(c for c in args.cases if c not in forwards)]
    return [(c, t) for t in args.tokens for c in cases]


def size(tokens: str) -> tuple[int, ...]:
    """Of a batch, to sort by: a peak of the allocator is never forgotten."""
    batch, length = map(int, tokens.split("x"))
    return batch * length, batch


def stored(folder: Path, case: str, tokens: str, program: str) -> Path:
    """Where a compiled program lies; sweeps know no tokens, forwards within steps only a base."""
    if program == "forward" and CASES[case].kind != "forward":
        base = CASES[case].base
        case = f"forward_{base}" if base else "forward"
    return folder / f"{case}-{tokens if program != 'sweep' else ''}-{program}"


def compile_all(args: Any) -> None:
    """Compile every program, a JSON line for each."""
    import jax
    from jax.experimental import serialize_executable

    folder, begun = Path(args.folder), set()

    def compile_one(lowered, path, info):
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        path.with_suffix(".partial").write_bytes(
            pickle.dumps(serialize_executable.serialize(compiled))
        )
        path.with_suffix(".partial").rename(path)
        found = compiled.memory_analysis()
        sizes = {
            "arguments": found.argument_size_in_bytes / _GIB,
            "temporaries": found.temp_size_in_bytes / _GIB,
        }
        emit(info | {"compile_s": seconds} | sizes)

    def failed(info, error):
        emit(info | {"error": f"{type(error).__name__}: {str(error)[:300]}"})

    emit({"device": jax.devices()[0].device_kind, "jax": jax.__version__})
    with ThreadPoolExecutor(args.threads) as pool:
        futures = []
        for name, tokens in plan(args):
            case = CASES[name]
            for kind, program in device_cases.programs(case, shape_of(args, tokens)).items():
                path = stored(folder, name, tokens, kind)
                if path in begun:
                    continue
                begun.add(path)
                info = {"case": name, "tokens": tokens, "program": kind}
                try:
                    start = time.perf_counter()
                    lowered = program.lower()
                    info["trace_s"] = time.perf_counter() - start
                    futures.append((info, pool.submit(compile_one, lowered, path, info)))
                except Exception as error:
                    failed(info, error)
        for info, future in futures:
            if error := future.exception():
                failed(info, error)


def measure(args: Any, name: str) -> None:
    """Run one case at every number of tokens, a JSON line for each."""
    import jax
    import numpy as np
    from jax.experimental import serialize_executable

    if jax.default_backend() == "gpu":
        # stored programs with kernels need the runtime that this finds
        import jax.experimental.pallas.mosaic_gpu  # noqa: F401

    folder, case = Path(args.folder), CASES[name]
    gpu = jax.devices()[0]

    def load(path):
        loaded = serialize_executable.deserialize_and_load(*pickle.loads(path.read_bytes()))
        return lambda *a: loaded(*a)

    def peak():
        stats = gpu.memory_stats() or {}
        return stats.get("peak_bytes_in_use", 0) / _GIB

    shapes = {t: shape_of(args, t) for t in sorted(args.tokens, key=size)}
    abstract = device_cases.parameters(case, next(iter(shapes.values())))
    held = {"params": device_cases.initialize(abstract)}
    base, peaks, programs = peak(), {}, {}

    def run_of(tokens):
        shape = shapes[tokens]
        ids = jax.random.randint(
            jax.random.key(1), (shape.batch, shape.length), 0, shape.vocabulary
        )
        return ids, device_cases.runner(case, programs[tokens], held, ids)

    def first_steps(tokens):
        names = device_cases.programs(case, shapes[tokens])
        programs[tokens] = {kind: load(stored(folder, name, tokens, kind)) for kind in names}
        _, run = run_of(tokens)
        for i in range(2):
            loss = jax.block_until_ready(run(i))
        peaks[tokens] = {"loss": float(np.mean(loss)), "peak": peak(), "parameters_peak": base}

    def repeat(tokens):
        same_base = f"forward_{case.base}" if case.base else "forward"
        forward = load(stored(folder, same_base, tokens, "forward"))
        ids, run = run_of(tokens)
        jax.block_until_ready((forward(held["params"], ids), run(2)))
        steps, forwards = [], []
        for i in range(args.repetitions):
            start = time.perf_counter()
            for _ in range(2):
                forward(held["params"], ids).block_until_ready()
            middle = time.perf_counter()
            jax.block_until_ready((run(3 + i), held))
            steps.append(1e3 * (time.perf_counter() - middle))
            forwards.append(1e3 * (middle - start))
        info = {"case": name, "tokens": tokens} | peaks[tokens]
        emit(info | {"step_ms": steps, "two_forwards_ms": forwards})

    # all peaks before any time: the allocator does not forget that of the forward passes
    for work in (first_steps, repeat):
        for tokens in shapes:
            if work is repeat and tokens not in peaks:
                continue
            try:
                work(tokens)
            except Exception as error:
                text = f"{type(error).__name__}: {str(error)[:300]}"
                emit({"case": name, "tokens": tokens, "error": text})
                if any(x.is_deleted() for x in jax.tree.leaves(held["params"])):
                    return


def emit(info: dict) -> None:
    # in one piece, as threads write at the same time
    sys.stdout.write(json.dumps(info) + "\n")
    sys.stdout.flush()


def follow(args: Any, worker: str, limit: float) -> list[dict]:
    """Run this module in a process of its own and collect its JSON lines."""
    flags = ["--cases", *args.cases, "--tokens", *args.tokens, "--folder", str(args.folder)]
    flags += ["--threads", str(args.threads), "--repetitions", str(args.repetitions)]
    flags += ["--layers", str(args.layers)] + (["--small"] if args.small else [])
    env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.93"} | dict(os.environ)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.device", "--worker", worker, *flags],
        stdout=subprocess.PIPE, text=True, env=env, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    timer = threading.Timer(limit, process.kill)
    timer.start()
    for line in process.stdout:
        print(worker, line, end="", flush=True)
        if line.startswith("{"):
            lines.append(json.loads(line))
    if code := process.wait():
        print(f"{worker} ended with {code} (-9: its {limit:.0f} seconds were over)", flush=True)
    timer.cancel()
    return lines


def table(found: list[dict]) -> None:
    """Milliseconds, ratio to two forwards and peak of every case."""
    rows = []
    for info in found:
        if "step_ms" in info:
            step, two = info["step_ms"], info["two_forwards_ms"]
            ratio = statistics.median(step) / statistics.median(two)
            median = statistics.median(step)
            rows.append([info["tokens"], info["case"], median, min(step), max(step), ratio,
                         info["peak"]])  # fmt: skip
    rows.sort(key=lambda row: size(row[0]))
    show(
        [[f"{row[0]} {row[1]}", *row[2:]] for row in rows],
        ["tokens, case", "ms", "least", "most", "/ two forwards", "peak GiB"],
    )


def main() -> None:
    def add(parser):
        parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all")
        parser.add_argument("--tokens", nargs="+", default=None, help='such as "1x256"')
        parser.add_argument("--layers", type=int, default=0, help="default: all")
        parser.add_argument("--repetitions", type=int, default=7)
        parser.add_argument("--threads", type=int, default=8, help="that compile")
        parser.add_argument("--seconds", type=float, default=3600)
        parser.add_argument("--compile-seconds", type=float, default=1800)
        parser.add_argument("--out", type=Path, help="file of results, written as they come")
        parser.add_argument("--folder", help="of compiled programs; a temporary one by default")
        parser.add_argument("--worker", help="for the processes that this one starts")

    args = parse(__doc__ or "", add)
    args.tokens = args.tokens or (["1x16"] if args.small else TOKENS)
    args.cases = args.cases or (
        ["forward", "low_rank", "in_place_rademacher"] if args.small else list(CASES)
    )
    if args.worker == "compile":
        return compile_all(args)
    if args.worker:
        return measure(args, args.worker)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        args.folder = args.folder or folder
        Path(args.folder).mkdir(exist_ok=True)
        result = {"compiled": follow(args, "compile", args.compile_seconds), "measured": []}
        for name in args.cases:
            left = args.seconds - (time.monotonic() - start)
            if left < 5:
                print(f"{name} is left out: {args.seconds:.0f} seconds are over", flush=True)
                continue
            result["measured"] += follow(args, name, left)
            if args.out:
                args.out.write_text(json.dumps(result))
    table(result["measured"])
    finish(args, result)


if __name__ == "__main__":
    main()
