"""The journal: which directions were applied with which coefficients, step by step.

A header line of JSON, then one record a step: step uint32, n times (key 2 x uint32, coefficient
float32), crc32 of the record. With the base parameters and the optimiser it rebuilds every state.
"""

import json
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from zojax.training.functions import Functions, TrainState

_MAGIC = "zojax-journal"
_VERSION = 1
_ENTRY = np.dtype([("key", "<u4", (2,)), ("coefficient", "<f4")])


class JournalWarning(UserWarning):
    """The end of a journal was damaged and cut off."""


class Record(NamedTuple):
    """One applied step."""

    step: int
    keys: np.ndarray  # uint32[n, 2]
    coefficients: np.ndarray  # float32[n]


class Journal:
    """An open journal; `append` returns when the record is in the hands of the system.

    Args:
        path: file; made with a header if missing, else its header must agree.
        num_samples: directions a step.
        run: JSON-serialisable description that a resumed run must share.

    Raises:
        ValueError: if the file is of another run or no journal.
    """

    def __init__(self, path: str | os.PathLike[str], num_samples: int, run: dict[str, Any]):
        self._path = Path(path)
        header = {"format": _MAGIC, "version": _VERSION, "num_samples": num_samples, "run": run}
        if self._path.exists():
            found, records, end = _scan(self._path)
            if found != json.loads(json.dumps(header)):
                raise ValueError(
                    f"{self._path}: the journal is of another run, {found}, not {header}; resume "
                    "with the settings it was written with, or choose another output folder"
                )
            self.records = records
            _cut(self._path, end)
            self._file = self._path.open("ab")
        else:
            self.records = []
            self._file = self._path.open("wb")
            self._file.write(json.dumps(header).encode() + b"\n")
            self._file.flush()

    def append(self, record: Record) -> None:
        entries = np.zeros(len(record.coefficients), _ENTRY)
        entries["key"], entries["coefficient"] = record.keys, record.coefficients
        body = struct.pack("<I", record.step) + entries.tobytes()
        self._file.write(body + struct.pack("<I", zlib.crc32(body)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_journal(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Record]]:
    """Header and records of a journal.

    Args:
        path: file.

    Returns:
        The header and every record up to the first damaged one, of which a `JournalWarning` tells.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no journal of this version.
    """
    header, records, _ = _scan(Path(path))
    return header, records


def replay(functions: Functions, state: TrainState, records: list[Record]) -> TrainState:
    """Apply the records from the state's step on, without data or model.

    Args:
        functions: of the same estimator and optimiser as the run.
        state: a state at or before the last record.
        records: in order.

    Returns:
        The state after the last record, bit for bit as it was on the same kind of device.

    Raises:
        ValueError: if a step is missing.
    """
    for record in records:
        if record.step < int(state.step):
            continue
        if record.step != int(state.step):
            raise ValueError(
                f"the journal has step {record.step} where {int(state.step)} was expected"
            )
        state = functions.apply(state, jnp.asarray(record.keys), jnp.asarray(record.coefficients))
    return state


def _scan(path: Path) -> tuple[dict[str, Any], list[Record], int]:
    data = path.read_bytes()
    line, newline, _ = data.partition(b"\n")
    try:
        header = json.loads(line) if newline else None
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != _MAGIC:
        raise ValueError(f"{path}: not a zojax journal (no header line); is it another file?")
    if header["version"] != _VERSION:
        raise ValueError(
            f"{path}: journal version {header['version']}, this zojax reads {_VERSION}"
        )
    start = len(line) + 1
    size = 8 + header["num_samples"] * _ENTRY.itemsize
    records: list[Record] = []
    for record in _records(data, start, size):
        records.append(record)
    end = start + len(records) * size
    if end != len(data):
        warnings.warn(
            f"{path}: record {len(records)} is torn or corrupt; the journal is cut after step "
            f"{records[-1].step if records else 'none'} ({len(data) - end} bytes dropped)",
            JournalWarning,
            stacklevel=3,
        )
    return header, records, end


def _records(data: bytes, start: int, size: int) -> Iterator[Record]:
    for at in range(start, len(data) - size + 1, size):
        body, (crc,) = data[at : at + size - 4], struct.unpack_from("<I", data, at + size - 4)
        if zlib.crc32(body) != crc:
            return
        (step,) = struct.unpack_from("<I", body)
        entries = np.frombuffer(body, _ENTRY, offset=4)
        yield Record(step, entries["key"].copy(), entries["coefficient"].copy())


def _cut(path: Path, end: int) -> None:
    if path.stat().st_size != end:
        with path.open("rb+") as file:
            file.truncate(end)
