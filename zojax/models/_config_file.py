"""The config.json of a folder."""

import json
from pathlib import Path
from typing import Any

from zojax.models._config_json import parse_config
from zojax.models.config import ModelConfig


def read_content(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a folder.

    Raises:
        FileNotFoundError: If there is no such folder, or no such file in it.
        ValueError: If the file is no JSON object.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; models are loaded from local folders only."
        )
    file = folder / "config.json"
    if not file.exists():
        found = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"{folder} has no config.json; found {found}.")
    return read_file(file)


def read_file(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: If the file holds something else.
    """
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a JSON {type(content).__name__}; expected an object.")
    return content


def parse_file(file: Path, content: dict[str, Any]) -> ModelConfig:
    """The configuration in a file's content; errors name the file."""
    try:
        return parse_config(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
