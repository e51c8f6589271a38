"""Measured times of the implementations, stored for each kind of device, and rules from them."""

import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Choice(NamedTuple):
    """What a rule chose.

    Attributes:
        implementation: "xla", "tpu" or "gpu".
        reason: why, in words.
        config: block sizes that were fastest where this was measured, else None.
    """

    implementation: str
    reason: str
    config: dict[str, int] | None = None


class Entry(NamedTuple):
    """One measured problem.

    Attributes:
        rows: of one product.
        k: rows of the weight.
        n: columns of the weight.
        dtype: of the activations.
        kind: distribution or format.
        ms: milliseconds of the fastest candidate of each implementation.
        config: block sizes of that candidate, for each implementation that has any.
    """

    rows: int
    k: int
    n: int
    dtype: str
    kind: str
    ms: dict[str, float]
    config: dict[str, dict[str, int]]


_TYPES = {"rows": int, "k": int, "n": int, "dtype": str, "kind": str, "ms": dict, "config": dict}
# the rules trust a measurement for sizes up to this factor away
_REACH = 2.0


def device_kind() -> str:
    """Kind of the device that is compiled for: of the abstract mesh, else the first device."""
    described = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return described.device_kind if described is not None else jax.devices()[0].device_kind


def platform_of(kind: str) -> str:
    """ "cpu", "tpu" or "gpu" of a device kind."""
    if kind.lower() == "cpu":
        return "cpu"
    return "tpu" if kind.upper().startswith("TPU") else "gpu"


def user_folder() -> Path:
    """Where measured tables are stored: $ZOJAX_KERNELS, else the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ZOJAX_KERNELS") or Path(cache) / "zojax" / "kernels")


def table_paths(operation: str, kind: str) -> list[Path]:
    """Files that may hold the table of a kind of device, the user's before the package's."""
    name = re.sub(r"\W+", "_", kind) + ".json"
    return [folder / operation / name for folder in (user_folder(), Path(__file__).parent)]


def load(operation: str, kind: str) -> list[Entry]:
    """The measured problems of an operation on a kind of device; empty if there are none.

    Raises:
        ValueError: if a table is there and is not one; names the file and what is wrong.
    """
    for path in table_paths(operation, kind):
        if path.exists():
            stamp = path.stat().st_mtime_ns
            if _cache.get(path, (None, None))[0] != stamp:
                _cache[path] = (stamp, _read(path, operation))
            return _cache[path][1]
    return []


_cache: dict[Path, tuple] = {}


def store(operation: str, kind: str, entries: Sequence[Entry], path: Path | None = None) -> Path:
    """Write a table, by default where `load` looks first; gives its path."""
    path = path or table_paths(operation, kind)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "operation": operation,
        "device_kind": kind,
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "entries": [e._asdict() for e in entries],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _read(path: Path, operation: str) -> list[Entry]:
    advice = "delete it or measure again: python -m tests.benchmarks.kernels --tune"
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {advice}") from error
    if not isinstance(content, dict) or not isinstance(content.get("entries"), list):
        raise ValueError(f'{path} must be an object with a list "entries"; {advice}')
    if content.get("operation") != operation:
        raise ValueError(
            f"{path} is a table of {content.get('operation')!r}, expected {operation!r}; {advice}"
        )
    found = []
    for i, entry in enumerate(content["entries"]):
        if not isinstance(entry, dict) or set(entry) != set(_TYPES):
            raise ValueError(
                f"{path}: entry {i} must have exactly {', '.join(_TYPES)}, found "
                f"{', '.join(entry) if isinstance(entry, dict) else type(entry).__name__}; {advice}"
            )
        for name, kind in _TYPES.items():
            if not isinstance(entry[name], kind):
                raise ValueError(
                    f"{path}: entry {i}: {name} must be {kind.__name__}, found "
                    f"{entry[name]!r}; {advice}"
                )
        if not entry["ms"] or not all(isinstance(v, float | int) for v in entry["ms"].values()):
            raise ValueError(
                f"{path}: entry {i}: ms must hold numbers, found {entry['ms']}; {advice}"
            )
        found.append(Entry(**entry))
    return found


def choose(
    operation: str, *, rows: int, k: int, n: int, dtype: str, kind: str, device: str
) -> Choice:
    """The implementation that was fastest for the nearest measured problem.

    Args:
        operation: name of the package.
        rows: of one product.
        k: rows of the weight.
        n: columns of the weight.
        dtype: of the activations.
        kind: distribution or format; where it was not measured, any counts.
        device: kind of device.

    Returns:
        What to use: "xla" wherever nothing was measured.
    """
    platform = platform_of(device)
    if platform == "cpu":
        return Choice("xla", "the kernels are for GPUs and TPUs")
    entries = [e for e in load(operation, device) if e.dtype == dtype]
    entries = [e for e in entries if e.kind == kind] or entries
    if not entries:
        return Choice("xla", f"{operation} of {dtype} was not measured on a {device}")

    def distance(e: Entry) -> float:
        return abs(math.log2(e.rows / rows)) + abs(math.log2(e.k * e.n / (k * n)))

    best = min(entries, key=distance)
    if max(best.rows / rows, rows / best.rows) > _REACH:
        return Choice("xla", f"{rows} rows are far from any that were measured on a {device}")
    times = {name: ms for name, ms in best.ms.items() if name in ("xla", platform)}
    name = min(times, key=lambda name: times[name])
    told = ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items())
    where = f"{best.rows} rows, {best.k} x {best.n}, {best.dtype}, {best.kind}"
    return Choice(name, f"{told} on a {device} ({where})", best.config.get(name))


def fastest(
    candidates: Mapping[str, Sequence[tuple[Any, Callable[[], Any]]]],
    args: Sequence[Any],
    repetitions: int = 5,
    threads: int = 8,
) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    """Times candidates on the device that is there.

    Args:
        candidates: for each implementation, its (config, function that gives what
            `jax.jit(f).lower` does).
        args: of each of them.
        repetitions: of which the median counts; each is of several calls, enqueued without waiting.
        threads: that compile.

    Returns:
        Milliseconds of each implementation's fastest candidate, and its config. A candidate that
        does not compile or run is left out, and so is an implementation without any.
    """
    ms: dict[str, float] = {}
    configs: dict[str, dict[str, int]] = {}
    with ThreadPoolExecutor(threads) as pool:
        tries = [
            (name, config, _attempt(f"{name} {config}", lambda lower=lower: pool.submit(
                lower().compile)))
            for name, tries in candidates.items()
            for config, lower in tries
        ]  # fmt: skip
        for name, config, future in tries:
            took = future and _attempt(
                f"{name} {config}", lambda f=future: _milliseconds(f.result(), args, repetitions)
            )
            if took is not None and took < ms.get(name, math.inf):
                ms[name] = took
                configs.pop(name, None)
                if config is not None:
                    configs[name] = dict(config._asdict())
    return ms, configs


def _attempt(name: str, fn: Callable[[], Any]) -> Any:
    try:
        return fn()
    except Exception as error:
        # too many registers, or more memory than a core has: what a search is to find out
        print(f"{name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return None


def _milliseconds(call: Callable, args: Sequence[Any], repetitions: int) -> float:
    jax.block_until_ready(call(*args))
    found, calls = [], 1
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        jax.block_until_ready([call(*args) for _ in range(calls)][-1])
        found.append(1e3 * (time.perf_counter() - start) / calls)
        # enough of them that enqueuing one is hidden by the others
        calls = max(1, min(20, round(10 / found[0])))
    return statistics.median(found[1:])
