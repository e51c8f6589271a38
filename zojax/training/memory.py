"""What a step needs beside its inputs, as the compiler reports it."""

from typing import Any, NamedTuple

import jax

from zojax.training.functions import Functions, Problem, TrainState
from zojax.virtual import materialize, virtualize


class StepMemory(NamedTuple):
    """Temporaries in bytes, from `memory_analysis()` of the compiled programs.

    Attributes:
        forward: one evaluation of the loss on dense parameters.
        zeroth_order: the queries of one estimate.
        backward: value and gradient by backpropagation, of the same trainables.
    """

    forward: int
    zeroth_order: int
    backward: int

    @property
    def ratio_to_forward(self) -> float:
        return self.zeroth_order / max(1, self.forward)


def step_memory(
    functions: Functions, problem: Problem, merge, state: TrainState, frozen: Any, batch: Any
) -> StepMemory:
    """Compile a forward, an estimate and a backward pass, and compare their temporaries.

    Args:
        functions: of `training_functions`.
        problem: its loss.
        merge: of the split.
        state: any state of the run.
        frozen: frozen parameters.
        batch: a batch of the shape in question.

    Returns:
        `StepMemory`. Nothing is run.
    """

    loss = virtualize(problem.loss)

    def of_trainable(trainable, frozen, batch):
        return loss(merge(trainable, frozen), batch)

    def temporaries(lowered) -> int:
        return int(lowered.compile().memory_analysis().temp_size_in_bytes)

    args = (state.trainable, frozen, batch)
    dense = jax.eval_shape(lambda t, f: materialize(merge(t, f)), state.trainable, frozen)
    return StepMemory(
        forward=temporaries(jax.jit(problem.loss).lower(dense, batch)),
        zeroth_order=temporaries(functions.ask.lower(state, frozen, batch)),  # pyright: ignore
        backward=temporaries(jax.jit(jax.value_and_grad(of_trainable)).lower(*args)),
    )
