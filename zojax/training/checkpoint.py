"""Checkpoints of the training state, through orbax."""

import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from zojax.training.functions import TrainState


class Checkpoints:
    """The last two states of a run on disk; each is written whole or not at all.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def save(self, state: TrainState) -> None:
        """Write the state under its step; nothing happens if that step is there."""
        step = int(state.step)
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(_arrays(state)), force=True)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest state, or None if there is none.

        Args:
            like: a state of the same structure, shapes and dtypes.

        Raises:
            ValueError: if the stored state has another structure or shape.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _arrays(like))
        try:
            arrays = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"checkpoint of step {step} has another structure than this run: it is of another "
                "model, method or optimizer"
            ) from error
        for name, expected in target.items():
            if arrays[name].shape != expected.shape or arrays[name].dtype != expected.dtype:
                raise ValueError(
                    f"checkpoint of step {step}: array {name} is {arrays[name].dtype}"
                    f"{list(arrays[name].shape)}, expected {expected.dtype}{list(expected.shape)}; "
                    "it is of another model or method"
                )
        leaves = [arrays[name] for name in sorted(arrays, key=int) if name != "-1"]
        state = jax.tree.unflatten(jax.tree.structure(like._replace(key=None)), leaves)
        return state._replace(key=jax.random.wrap_key_data(arrays["-1"]))

    def close(self) -> None:
        self._manager.close()


def _arrays(state: TrainState) -> dict[str, jax.Array]:
    # by number: names of leaves differ between optimisers, and orbax has no typed keys
    leaves = jax.tree.leaves(state._replace(key=None))
    arrays = {str(i): leaf for i, leaf in enumerate(leaves)}
    return arrays | {"-1": jax.random.key_data(state.key)}
