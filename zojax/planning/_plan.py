"""Memory and operations of a step, from shapes alone."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import SingleDeviceSharding

from zojax.estimators import AnyEstimator, num_queries
from zojax.optimizers import step_functions
from zojax.planning._flops import matmul_flops
from zojax.planning._target import find_target, target_device
from zojax.trainables import Split, full, path_name
from zojax.virtual import virtualize


class Leaf(NamedTuple):
    """One array that stays on the device."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


class Plan(NamedTuple):
    """What a step needs, in bytes; the parts add up to the total.

    Attributes:
        weights: parameters that do not move, quantised ones as stored, positions of sparse ones.
        trainables: what moves; of `zojax.full` the whole model.
        optimizer: states of the optimiser and of an adaptive estimator, key and counter.
        batch: one batch.
        temporaries: everything else at the peak of a step: activations, perturbed weights, outputs.
        forward: temporaries of one forward pass on the same parameters, for comparison.
        ask: bytes on the device while the loss is asked.
        apply: bytes on the device while the answer is applied.
        total: the larger of the two.
        flops: operations of the matrix products and convolutions of a step; see `matmul_flops`.
        queries: forward passes a step.
        leaves: the arrays on the device, largest first.
        device: what it was compiled for.
        basis: how sure the numbers are.
    """

    weights: int
    trainables: int
    optimizer: int
    batch: int
    temporaries: int
    forward: int
    ask: int
    apply: int
    total: int
    flops: int
    queries: int
    leaves: tuple[Leaf, ...]
    device: str
    basis: str

    @property
    def parts(self) -> dict[str, int]:
        """The parts of the total by name."""
        names = ("weights", "trainables", "optimizer", "batch", "temporaries")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable: sizes in GiB under "total_gib", "weights_gib" and so on."""
        sizes = self.parts | {"forward": self.forward, "ask": self.ask, "apply": self.apply}
        sizes = {"total": self.total} | sizes
        rounded = {f"{name}_gib": round(size / 2**30, 4) for name, size in sizes.items()}
        rest = {"total_bytes": self.total, "flops": self.flops, "queries": self.queries}
        return rounded | rest | {"device": self.device, "basis": self.basis}

    def draw(self, path: str | os.PathLike[str], title: str = "") -> None:
        """Draw the parts and the largest arrays as PNG; needs matplotlib."""
        from zojax.planning._draw import draw

        draw(self, path, title)

    def __str__(self) -> str:
        rows = [(name, _human(size)) for name, size in self.parts.items()]
        rows[-1] = ("temporaries", f"{rows[-1][1]}  (a forward pass: {_human(self.forward)})")
        rows += [("total", _human(self.total)), ("flops a step", f"{self.flops:.3g}")]
        rows[-1] = (rows[-1][0], f"{rows[-1][1]:>11}  ({self.queries} forward passes)")
        lines = [f"{name:<13}{text}" for name, text in rows]
        largest = [
            f"  {_human(leaf.bytes)}  {leaf.path} {leaf.dtype}{list(leaf.shape)}"
            for leaf in self.leaves[:5]
        ]
        return "\n".join([*lines, "largest arrays", *largest, f"{self.device}: {self.basis}"])


def plan(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    estimator: AnyEstimator,
    *,
    trainable: Split | Callable[[Any], Split] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    target: str | None = None,
) -> Plan:
    """Bytes and operations of a training step, before anything is allocated or run.

    Compiles the two programs of a step, `ask` and `apply` of `step_functions`, and reads
    `memory_analysis()`; what the one needs that the other holds is counted too. The loop's own copy
    of the best trainables, evaluation and what the device's driver keeps are not.

    Args:
        loss: `loss(params, batch) -> scalar`, unmodified.
        params: tree of arrays or of `jax.ShapeDtypeStruct`.
        batch: likewise.
        estimator: for example `zojax.mezo()`.
        trainable: what moves: a `Split` of arrays or shapes, or a function that makes one of
            `params` and is traced, such as `lambda p: zojax.lora(p, jax.random.key(0))`;
            everything if None. For `zojax.sensitive`, whose positions depend on values, give
            `zojax.trainables.abstract_sensitive`.
        optimizer: plain gradient descent if None.
        target: compile for a device that is not there, one of `zojax.planning.TARGETS`; for this
            machine if None.

    Returns:
        A `Plan`; print it.

    Raises:
        ValueError: if the target is not known, or a part is wrong in itself.
        ModuleNotFoundError: if the target's compiler is not installed.

    >>> import jax, jax.numpy as jnp, zojax
    >>> params = {"w": jax.ShapeDtypeStruct((256, 64), jnp.float32)}
    >>> x = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    >>> loss = lambda p, x: jnp.square(x @ p["w"]).mean()
    >>> found = zojax.plan(loss, params, x, zojax.mezo(direction=zojax.low_rank(1)))
    >>> found.trainables, found.batch, found.queries
    (65536, 8192, 2)
    """
    if target is None:
        device, sharding = jax.devices()[0], None
    else:
        device = target_device(target)
        sharding = SingleDeviceSharding(device)
    place = lambda tree: _abstract(tree, sharding)  # noqa: E731
    params, batch = place(params), place(batch)
    if isinstance(trainable, Split):
        split = trainable
    else:
        split = abstract_split(trainable or full, params)
    virtual_loss = virtualize(loss)

    def of_trainable(trainable, frozen, batch):
        return virtual_loss(split.merge(trainable, frozen), batch)

    steps = step_functions(of_trainable, estimator, optimizer or optax.sgd(1e-3))
    moving, frozen = place(split.trainable), place(split.frozen)
    state = place(jax.eval_shape(lambda t: steps.init(t, jax.random.key(0)), moving))
    # arguments that a program does not read stay on the device all the same
    ask = jax.jit(steps.ask, keep_unused=True).trace(state, frozen, batch)
    answer = place(jax.eval_shape(steps.ask, state, frozen, batch))
    apply = jax.jit(steps.apply, donate_argnums=0, keep_unused=True).trace(
        state, answer.keys, answer.coefficients
    )
    forward = jax.jit(of_trainable, keep_unused=True).trace(moving, frozen, batch)
    asking = _peak(ask.lower().compile())
    applying = _peak(apply.lower().compile()) + _size(frozen) + _size(batch)
    total = max(asking, applying)
    sizes = {"weights": _size(frozen), "trainables": _size(moving), "batch": _size(batch)}
    sizes["optimizer"] = _size(state) - sizes["trainables"]
    return Plan(
        **sizes,
        temporaries=total - sum(sizes.values()),
        forward=_analysis(forward.lower().compile()).temp_size_in_bytes,
        ask=asking,
        apply=applying,
        total=total,
        flops=matmul_flops(ask.jaxpr) + matmul_flops(apply.jaxpr),
        queries=num_queries(estimator),
        leaves=_leaves({"trainables": moving, "weights": frozen, "optimizer": state.opt_state}),
        device=find_target(target).label if target else device.device_kind,
        basis=_basis(target, device.platform),
    )


def abstract_split(make: Callable[[Any], Split], params: Any) -> Split:
    """The shapes of a split, without values.

    Args:
        make: `params -> Split`; traced, so what moves may not depend on values.
        params: tree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        A `Split` of `jax.ShapeDtypeStruct`, with the merge of `make`.
    """
    merges = []

    def run(params):
        split = make(params)
        merges.append(split.merge)
        return split.trainable, split.frozen

    trainable, frozen = jax.eval_shape(run, params)
    return Split(trainable, frozen, merges[-1])


def _abstract(tree: Any, sharding: Any) -> Any:
    """Shapes and dtypes of a tree, on a device that may not be there."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda t: t, tree),
    )


def _analysis(compiled: Any) -> Any:
    found = compiled.memory_analysis()
    if found is None:
        raise NotImplementedError("the compiler of this device reports no memory; give a target")
    return found


def _peak(compiled: Any) -> int:
    found = _analysis(compiled)
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return int(found.argument_size_in_bytes + found.temp_size_in_bytes + outputs)


def _size(tree: Any) -> int:
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _bytes(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def _leaves(tree: Any) -> tuple[Leaf, ...]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = [Leaf(path_name(path), x.shape, x.dtype.name, _bytes(x)) for path, x in flat]
    return tuple(sorted(leaves, key=lambda leaf: -leaf.bytes))


def _basis(target: str | None, platform: str) -> str:
    if target is not None:
        return "compiled from its description; what its driver and libraries keep comes on top"
    if platform == "cpu":
        return "compiled for this machine; on a GPU or TPU only the temporaries differ"
    return "compiled for this machine; what its driver and libraries keep comes on top"


def _human(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:7.2f} {unit}"
    return f"{size:7d} B  "
