"""The claims of SensZOQ and QZO on a real pre-trained decoder: what moves, and over which base.

Every method gets the same number of steps and of forward passes (two a step), the same batches and
a grid of three step sizes, `--factors` times the middle that is written below; the one with the
least loss on dev examples counts, found with a seed that is not among those reported.
Accuracy on test examples is after the last step. "first-order" rows use backpropagation for as many
steps, as a ceiling. Differences are of the same seeds, with a 95 % interval of Student's t.

Masks are of the layers' matrices alone, as in the paper. "task" scores come from the training
prompts, "text" from a file of general text. Needs a model, any Hugging Face folder, and a folder of
the task as JSON Lines.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import zojax
from tests.benchmarks.table import finish, parse, show
from zojax import models, tasks, trainables
from zojax.quantization import is_weight
from zojax.training import Problem, evaluate, training_functions

_TUNING_SEED = 1000
_T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}


class Setting(NamedTuple):
    """What all methods share."""

    params: Any
    problem: Problem
    train: tasks.Encoded
    dev: tasks.Encoded
    test: tasks.Encoded
    task_scores: Any
    text_scores: Any
    steps: int
    batch_size: int
    density: float
    group_size: int
    length: int


class Method(NamedTuple):
    """A split to train, and how.

    Attributes:
        split: `Setting -> Split`.
        optimizer: "sgd" or "adam".
        rate: middle of the grid.
        first_order: whether gradients come from backpropagation.
        clip: bound of the coefficients, or None.
        mu: smoothing parameter.
    """

    split: Callable[[Setting], zojax.Split]
    optimizer: str
    rate: float
    first_order: bool = False
    clip: float | None = None
    mu: float = 1e-3


def _sensitive(s: Setting, base: str | None = None, scores: str = "task", per="tensor"):
    split = zojax.sensitive(s.params, getattr(s, f"{scores}_scores"), s.density, per=per)
    if base is None:
        return split
    return split._replace(frozen=zojax.quantize(split.frozen, base, group_size=s.group_size))


def _random(s: Setting):
    return trainables.random(jax.random.key(9), s.params, s.density, where=is_weight)


def _magnitude(s: Setting):
    return trainables.magnitude(s.params, s.density, where=is_weight)


def _scales(s: Setting, base: str, positive="clamp"):
    return trainables.scales(zojax.quantize(s.params, base, group_size=s.group_size), positive)


def _levels(s: Setting):
    return trainables.codebook(zojax.quantize(s.params, "codebook", weights=s.task_scores))


def _lora(s: Setting):
    return zojax.lora(s.params, jax.random.key(9), 8)


METHODS = {
    "full": Method(lambda s: zojax.full(s.params), "sgd", 2e-4),
    "sensitive": Method(_sensitive, "adam", 2e-3),
    "random": Method(_random, "adam", 2e-3),
    "magnitude": Method(_magnitude, "adam", 2e-3),
    "sensitive, text mask": Method(partial(_sensitive, scores="text"), "adam", 2e-3),
    "sensitive, nf4": Method(partial(_sensitive, base="nf4"), "adam", 2e-3),
    "sensitive, int4": Method(partial(_sensitive, base="int4"), "adam", 2e-3),
    "LoRA, rank 8": Method(_lora, "adam", 1e-3),
    "QZO, int4 scales": Method(partial(_scales, base="int4"), "sgd", 1e-5, clip=100.0),
    # as the command line does it
    "QZO, int4 log-scales": Method(
        partial(_scales, base="int4", positive="exp"), "adam", 1e-3, clip=100.0, mu=1e-2
    ),
    "codebook levels": Method(_levels, "adam", 1e-3, clip=100.0, mu=1e-2),
    "first-order sensitive": Method(_sensitive, "adam", 2e-3, first_order=True),
    "first-order full": Method(lambda s: zojax.full(s.params), "adam", 3e-4, first_order=True),
    "sensitive, codebook": Method(partial(_sensitive, base="codebook"), "adam", 2e-3),
    "sensitive, one threshold": Method(partial(_sensitive, per="model"), "adam", 2e-3),
}


def prepare(args) -> Setting:
    """Load model and task; score the weights on the training prompts and on general text."""
    template = tasks.find_template(args.task)
    splits = tasks.load_splits(template, args.data, num_train=1000, num_dev=300, num_test=1000)
    model = models.load(args.model, jnp.float32)
    tokenizer = tasks.load_tokenizer(args.model)
    bind, params = models.functional(model)
    loss, logits = tasks.option_scoring(bind, template.loss)
    problem = Problem(loss, logits, lambda lo, y: tasks.example_losses(lo, y, template.loss))
    length = min(model.config.max_positions, args.length)
    train, dev, test = (tasks.encode_options(x, template, tokenizer, length) for x in splits)
    language = tasks.language_modelling(bind)
    prompts = [template.render(e).prompt for e in splits.train]
    texts = args.text.read_text().split("\n\n")
    scores = [
        zojax.sensitivity(
            language, params, tasks.encode_chunks(t, tokenizer, 256, args.chunks), where=is_weight
        )
        for t in (prompts, texts)
    ]
    return Setting(
        params, problem, train, dev, test, *scores, args.steps, args.batch_size, args.density, 32,
        length,
    )  # fmt: skip


class Runner:
    """The compiled functions of one method, for all step sizes and seeds."""

    def __init__(self, setting: Setting, method: Method):
        self.setting, self.method = setting, method
        self.split = method.split(setting)
        estimator = zojax.mezo(method.mu)
        if method.clip:
            estimator = estimator._replace(shaping=zojax.clipped(zojax.difference(), method.clip))
        make = {"sgd": optax.sgd, "adam": optax.adam}[method.optimizer]
        tx = optax.inject_hyperparams(make)(learning_rate=0.0)
        merge = self.split.merge
        self.run = training_functions(setting.problem, merge, estimator, tx)
        loss = zojax.virtualize(setting.problem.loss)
        self.gradient = jax.jit(jax.grad(lambda t, f, b: loss(merge(t, f), b)))

        @jax.jit
        def move(state, grads):
            updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
            trainable = optax.apply_updates(state.trainable, updates)
            return state._replace(trainable=trainable, opt_state=opt_state)

        self.move = move

    def __call__(self, rate: float, seed: int) -> tuple[float, float]:
        """Loss on dev examples and accuracy on test examples after training; (inf, 0) if NaN."""
        setting, run, frozen = self.setting, self.run, self.split.frozen
        state = run.init(self.split.trainable, jax.random.key(seed))
        schedule = optax.linear_schedule(rate, 0.0, setting.steps)
        count = len(setting.train)
        for step in range(setting.steps):
            hyperparams = {"learning_rate": jnp.asarray(schedule(step), jnp.float32)}
            state = state._replace(opt_state=state.opt_state._replace(hyperparams=hyperparams))
            rows = tasks.batch_indices(count, setting.batch_size, seed, step)
            batch = self.take(setting.train, rows)
            if self.method.first_order:
                state = self.move(state, self.gradient(state.trainable, frozen, batch))
            else:
                found = run.ask(state, frozen, batch)
                state = run.apply(state, found.keys, found.coefficients)
        dev, test = (self.measured(state, data) for data in (setting.dev, setting.test))
        return (dev.loss, test.accuracy) if math.isfinite(dev.loss) else (math.inf, 0.0)

    def take(self, data: tasks.Encoded, rows: np.ndarray) -> dict[str, np.ndarray]:
        # one width, so that each function is compiled once
        return tasks.take(data, rows, buckets=(self.setting.length,))

    def measured(self, state, data: tasks.Encoded):
        rows = np.array_split(np.arange(len(data)), max(1, len(data) // 125))
        batches = ((self.take(data, r), np.ones(len(r), bool)) for r in rows)
        return evaluate(
            lambda batch: self.run.predict(state.trainable, self.split.frozen, batch),
            self.setting.problem.example_losses,
            batches,
        )


def interval(differences: list[float]) -> float:
    """Half of a 95 % interval of the mean."""
    n = len(differences)
    if n < 2:
        return math.inf
    return _T95.get(n, 2.0) * statistics.stdev(differences) / n**0.5


def main() -> None:
    def add(parser):
        parser.add_argument("--model", type=Path, required=True)
        parser.add_argument("--data", type=Path, required=True)
        parser.add_argument("--text", type=Path, required=True, help="general text")
        parser.add_argument("--task", default="subj")
        parser.add_argument("--steps", type=int, default=250)
        parser.add_argument("--batch-size", type=int, default=32)
        parser.add_argument("--length", type=int, default=48)
        parser.add_argument("--density", type=float, default=1e-3)
        parser.add_argument("--chunks", type=int, default=100)
        parser.add_argument("--seeds", type=int, default=4)
        parser.add_argument("--factors", type=float, nargs="+", default=[0.25, 1.0, 4.0])
        parser.add_argument("--mu", type=float, help="of all methods; default: their own")
        parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))

    args = parse(__doc__ or "", add)
    if args.small:
        args.steps, args.seeds, args.chunks = 5, 2, 4
        args.methods = ["sensitive", "sensitive, nf4"]
    setting = prepare(args)
    result, rows = {}, []
    factors = (1.0,) if args.small else args.factors
    runs = len(args.methods) * (len(factors) + args.seeds)
    with tqdm(total=runs, unit="run", disable=None) as bar:
        for name in args.methods:
            method = METHODS[name]
            if args.mu is not None:
                method = method._replace(mu=args.mu)
            runner, tried, found = Runner(setting, method), {}, []
            for factor in factors:
                tried[method.rate * factor] = runner(method.rate * factor, _TUNING_SEED)
                bar.update()
            best = min(tried, key=lambda rate: tried[rate][0])
            for seed in range(args.seeds):
                found.append(runner(best, seed))
                bar.update()
            accuracy = [100 * f[1] for f in found]
            result[name] = {
                "trainables": trainables.size(runner.split.trainable),
                "optimizer": method.optimizer,
                "rate": best,
                "accuracy": accuracy,
                "dev_loss": [f[0] for f in found],
                "tuning": {rate: loss for rate, (loss, _) in tried.items()},
            }
            if args.json:
                print(name, result[name], flush=True)
    reference = result.get("sensitive")
    for name, found in result.items():
        accuracy = found["accuracy"]
        row = [name, found["trainables"], f"{found['optimizer']} {found['rate']:.2g}",
               statistics.mean(accuracy), statistics.stdev(accuracy)]  # fmt: skip
        if reference is not None and name != "sensitive":
            gap = [b - a for a, b in zip(accuracy, reference["accuracy"], strict=True)]
            row += [statistics.mean(gap), interval(gap)]
        else:
            row += ["", ""]
        rows.append(row)
    header = ["method", "trainables", "tuned", "accuracy", "stdev", "sensitive is ahead by", "+-"]
    show(rows, header)
    finish(args, result)


if __name__ == "__main__":
    main()
