"""The command line: flags to a configuration, a configuration to a function, a result to text."""

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import field, make_dataclass
from typing import Annotated, Any, Union, cast

import tyro

from zojax.cli.config import Demo, Evaluate, Export, Finetune, Plan, Quantize, Sensitivity

# command: its configuration, and the module that has a function of its name
_COMMANDS: dict[str, tuple[type, str]] = {
    "finetune": (Finetune, "finetune"),
    "evaluate": (Evaluate, "finetune"),
    "plan": (Plan, "plan"),
    "sensitivity": (Sensitivity, "sensitivity"),
    "quantize": (Quantize, "quantize"),
    "export": (Export, "export"),
    "demo": (Demo, "demo"),
}


def _with_json(name: str, config: type) -> Any:
    """A configuration as a subcommand, with the flag that all share."""
    about = tyro.conf.arg(help="Print the result as one JSON object on the last line.")
    flag = ("json", Annotated[bool, about], field(default=False))
    kind = make_dataclass(
        f"{config.__name__}Command",
        [flag],
        bases=(config,),
        frozen=True,
        namespace={"__doc__": config.__doc__},
    )
    return Annotated[kind, tyro.conf.subcommand(name)]


def main(args: list[str] | None = None) -> int:
    """Run a command.

    Args:
        args: command-line arguments; those of the process if None.

    Returns:
        Exit status: 0, or 1 after an error in the input, 143 after a run was interrupted.
    """
    kinds = tuple(_with_json(name, config) for name, (config, _) in _COMMANDS.items())
    command = tyro.cli(
        cast(Any, Union[kinds]),  # noqa: UP007 (of a tuple)
        prog="zojax",
        description="Fine-tune language models with forward passes only.",
        args=args,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            result = _function(command)(command)
    except (OSError, ValueError, TypeError, FloatingPointError, ModuleNotFoundError) as error:
        if os.environ.get("ZOJAX_TRACEBACK"):
            raise
        print(f"zojax: {error}", file=sys.stderr)
        return 1
    if command.json:
        print(json.dumps(result), flush=True)
    elif not isinstance(command, (Demo, Plan)):  # which have told their story already
        _print_table(result)
    return 143 if result.get("status") == "interrupted" else 0


def _function(command: Any) -> Callable[[Any], dict[str, Any]]:
    # imported here so that --help answers at once
    name, module = next(
        (name, module) for name, (kind, module) in _COMMANDS.items() if isinstance(command, kind)
    )
    return getattr(importlib.import_module(f"zojax.cli.{module}"), name)


def _print_table(result: dict[str, Any]) -> None:
    """The result's numbers and texts; the command has shown its tables itself."""
    result = {k: v for k, v in result.items() if not isinstance(v, (list, dict))}
    width = max(map(len, result))
    for name, value in result.items():
        text = f"{value:,}" if isinstance(value, int) else str(value)
        print(f"{name.replace('_', ' '):<{width}}  {text}")


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"zojax: {message}", file=sys.stderr)
