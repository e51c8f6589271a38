"""The output folder of a run: who may write there, and what it belongs to."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zojax.trainables import path_name

try:
    import fcntl
except ImportError:  # no advisory locks on this system; only the manifest guards the folder
    fcntl = None


class RunFolder:
    """An output folder, locked while the process lives.

    Args:
        path: made if missing.
        manifest: JSON-serialisable; what a resumed run must share.
        resume: go on with what is there, instead of requiring an empty folder.

    Raises:
        FileExistsError: if another process writes there, or a run is there and `resume` is False.
        ValueError: if the run there has another manifest; says which entries differ.
        FileNotFoundError: if `resume` is True and no run is there.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: dict[str, Any], resume: bool):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("a")
        try:
            self._acquire()
            self._check(json.loads(json.dumps(manifest)), resume)
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        self._lock.close()

    def _acquire(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FileExistsError(
                f"{self.path}: another run writes to this output folder; choose another one"
            ) from error

    def _check(self, manifest: dict[str, Any], resume: bool) -> None:
        file = self.path / "manifest.json"
        if not file.exists():
            if resume:
                raise FileNotFoundError(f"{self.path}: no run to resume (no manifest.json)")
            others = [p.name for p in self.path.iterdir() if p.name != ".lock"]
            if others:
                raise FileExistsError(
                    f"{self.path}: the output folder is in use, it holds {sorted(others)[:4]}; "
                    "choose an empty or new one"
                )
            file.write_text(json.dumps(manifest, indent=2) + "\n")
            return
        if not resume:
            raise FileExistsError(
                f"{self.path}: the output folder holds a run; resume it, or choose another one"
            )
        found = json.loads(file.read_text())
        different = [k for k in {**found, **manifest} if found.get(k) != manifest.get(k)]
        if different:
            k = different[0]
            raise ValueError(
                f"{self.path}: cannot resume, '{k}' was {found.get(k)!r} and is now "
                f"{manifest.get(k)!r}"
                + (f" (also: {', '.join(different[1:])})" if different[1:] else "")
            )


def fingerprint(params: Any) -> str:
    """Eight hex digits that tell models apart: paths, shapes, dtypes and a sample of values.

    Args:
        params: tree of arrays.

    Returns:
        crc32 as hex; reads at most 64 values a leaf.
    """
    crc = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        flat = leaf.reshape(-1)
        stride = max(1, flat.size // 64)
        sample = np.asarray(flat[: 64 * stride : stride])
        label = f"{path_name(path)}{leaf.shape}{leaf.dtype}"
        crc = zlib.crc32(sample.tobytes(), zlib.crc32(label.encode(), crc))
    return f"{crc:08x}"
