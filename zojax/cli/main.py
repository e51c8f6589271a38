"""The command line: flags to a configuration, a configuration to a function, a result to text."""

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from zojax.cli.config import Demo, Evaluate, Export, Finetune, Plan, Quantize, Sensitivity

_JSON = tyro.conf.arg(help="Print the result as one JSON object on the last line.")


@dataclass(frozen=True)
class _FinetuneCommand(Finetune):
    __doc__ = Finetune.__doc__
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class _EvaluateCommand(Evaluate):
    __doc__ = Evaluate.__doc__
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class _SensitivityCommand(Sensitivity):
    __doc__ = Sensitivity.__doc__
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class _QuantizeCommand(Quantize):
    __doc__ = Quantize.__doc__
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class _ExportCommand(Export):
    __doc__ = Export.__doc__
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class _DemoCommand(Demo):
    __doc__ = Demo.__doc__
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class _PlanCommand(Plan):
    __doc__ = Plan.__doc__
    json: Annotated[bool, _JSON] = False


_Command = (
    Annotated[_FinetuneCommand, tyro.conf.subcommand("finetune")]
    | Annotated[_EvaluateCommand, tyro.conf.subcommand("evaluate")]
    | Annotated[_PlanCommand, tyro.conf.subcommand("plan")]
    | Annotated[_SensitivityCommand, tyro.conf.subcommand("sensitivity")]
    | Annotated[_QuantizeCommand, tyro.conf.subcommand("quantize")]
    | Annotated[_ExportCommand, tyro.conf.subcommand("export")]
    | Annotated[_DemoCommand, tyro.conf.subcommand("demo")]
)


def main(args: list[str] | None = None) -> int:
    """Run a command.

    Args:
        args: command-line arguments; those of the process if None.

    Returns:
        Exit status: 0, or 1 after an error in the input, 143 after a run was interrupted.
    """
    command = tyro.cli(
        _Command,
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
    module, name = next(place for kind, place in _FUNCTIONS.items() if isinstance(command, kind))
    return getattr(importlib.import_module(f"zojax.cli.{module}"), name)


_FUNCTIONS = {
    Finetune: ("finetune", "finetune"),
    Evaluate: ("finetune", "evaluate"),
    Sensitivity: ("sensitivity", "sensitivity"),
    Quantize: ("quantize", "quantize"),
    Export: ("export", "export"),
    Plan: ("plan", "plan"),
    Demo: ("demo", "demo"),
}


def _print_table(result: dict[str, Any]) -> None:
    """The result's numbers and texts; the command has shown its tables itself."""
    result = {k: v for k, v in result.items() if not isinstance(v, (list, dict))}
    width = max(map(len, result))
    for name, value in result.items():
        text = f"{value:,}" if isinstance(value, int) else str(value)
        print(f"{name.replace('_', ' '):<{width}}  {text}")


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"zojax: {message}", file=sys.stderr)
