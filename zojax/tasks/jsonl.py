"""Reading JSON Lines."""

import json
import os
from pathlib import Path
from typing import Any


def read_numbered(path: str | os.PathLike[str]) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its line number; see `read_jsonl`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected JSON Lines, one object a line")
    numbered = []
    with path.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    example = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{path}:{number}: not JSON ({error.msg} at column {error.colno}): "
                        f"{_shorten(line)}; expected one JSON object a line"
                    ) from error
                if not isinstance(example, dict):
                    raise ValueError(
                        f"{path}:{number}: found a JSON {type(example).__name__}, "
                        f"{_shorten(line)}; expected an object such as "
                        '{"text": "...", "label": 0}'
                    )
                numbered.append((number, example))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: not UTF-8 after line {numbered[-1][0] if numbered else 0} "
                f"({error.reason}); convert the file to UTF-8"
            ) from error
    if not numbered:
        raise ValueError(f"{path}: empty; expected JSON Lines, one object a line")
    return numbered


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads a JSON Lines file: UTF-8, one JSON object a line, blank lines skipped.

    Args:
        path: The file.

    Returns:
        The objects, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or not UTF-8, or a line is not a JSON object; the
            message names the file and the line.
    """
    return [example for _, example in read_numbered(path)]


def _shorten(line: str, limit: int = 60) -> str:
    line = line.strip()
    return repr(line if len(line) <= limit else line[:limit] + "...")
