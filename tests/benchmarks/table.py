"""What the benchmarks share: flags, a table, one JSON object on the last line."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any


def parse(description: str, add: Callable[[argparse.ArgumentParser], None] | None = None):
    """The flags of a benchmark: `--json`, `--small`, and its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print the results as JSON at the end")
    parser.add_argument("--small", action="store_true", help="smaller sizes, under 45 seconds")
    if add:
        add(parser)
    return parser.parse_args()


def show(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> None:
    """Print a table, numbers on the right."""
    texts = [list(header), *[[_text(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    for row in texts:
        first, *rest = [c.rjust(w) for c, w in zip(row, widths, strict=True)]
        print("  ".join([first.strip().ljust(widths[0]), *rest]), flush=True)


def finish(args: argparse.Namespace, result: Any) -> None:
    if args.json:
        print(json.dumps(result), flush=True)


def _text(cell: Any) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
