"""SUBJ with a real pre-trained decoder: full-parameter MeZO and sensitive parameters, by seed.

Needs the model, any Hugging Face folder, and a folder with the SUBJ files as JSON Lines.
Each row runs `zojax finetune` with its defaults but for the flags shown.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.table import finish, parse, show
from zojax.cli import Finetune, TaskConfig
from zojax.cli.finetune import finetune

_RUNS = {
    "full": {},
    "sensitive 1 %": {"method": "sensitive", "density": 1e-2},
    "sensitive 0.1 %": {"method": "sensitive", "density": 1e-3},
}


def main() -> None:
    def add(parser):
        parser.add_argument("--model", type=Path, required=True)
        parser.add_argument("--data", type=Path, required=True)
        parser.add_argument("--steps", type=int, default=1500)
        parser.add_argument("--seeds", type=int, default=3)
        parser.add_argument("--methods", nargs="+", choices=list(_RUNS), default=list(_RUNS))

    args = parse(__doc__ or "", add)
    steps, seeds = (30, 1) if args.small else (args.steps, args.seeds)
    base = Finetune(
        model=args.model,
        task=TaskConfig(data=args.data, task="subj", num_test=200 if args.small else 1000),
        steps=steps,
        eval_every=min(250, steps),
        progress=False,
    )
    result, rows = {}, []
    for name in args.methods:
        runs = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                runs.append(finetune(dataclasses.replace(base, seed=seed, out=out, **_RUNS[name])))
        after = [r["accuracy_after"] for r in runs]
        spread = statistics.stdev(after) if len(after) > 1 else 0.0
        result[name] = {
            "before": runs[0]["accuracy_before"],
            "after": after,
            "mean": statistics.mean(after),
            "stdev": spread,
            "trainables": runs[0]["trainable_parameters"],
            "adapter_bytes": runs[0]["adapter_bytes"],
            "seconds_per_step": statistics.median(r["seconds_per_step"] for r in runs),
        }
        rows.append(
            [name, runs[0]["trainable_parameters"], runs[0]["accuracy_before"],
             " ".join(f"{a:.3f}" for a in after), statistics.mean(after), spread,
             result[name]["seconds_per_step"]]
        )  # fmt: skip
    header = ["method", "trainables", "before", "after, by seed", "mean", "stdev", "s/step"]
    show(rows, header)
    finish(args, result)


if __name__ == "__main__":
    main()
