"""Which cases of a test are left to `make test-slow`."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest


def slow_but(fast: Collection[str], cases: Mapping[str, Any]) -> list:
    """Parameters for `parametrize`, by name; those that are not named take the slow mark.

    Args:
        fast: names of the cases that stand for all in the fast suite.
        cases: name to a parameter, or to a tuple of several.
    """
    missing = set(fast) - set(cases)
    if missing:
        raise ValueError(f"no case is called {', '.join(sorted(missing))}")
    return [
        pytest.param(
            *(case if type(case) is tuple else (case,)),
            id=name,
            marks=() if name in fast else pytest.mark.slow,
        )
        for name, case in cases.items()
    ]
