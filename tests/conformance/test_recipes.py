"""Every recipe keeps what it claims; with `--estimator`, one's own."""

import importlib
import re
from pathlib import Path

import pytest

import zojax
from tests.conformance.checks import claimed
from tests.conformance.recipes import EAGER, RECIPES, SLOW, Recipe
from tests.conformance.subject import Claims, Subject


def pytest_generate_tests(metafunc):
    if "recipe" not in metafunc.fixturenames:
        return
    place = metafunc.config.getoption("--estimator", default=None)
    recipes = RECIPES if place is None else {place: _named(place)}
    eager = [place is not None or name in EAGER for name in recipes]
    marks = [pytest.mark.slow if place is None and name in SLOW else () for name in recipes]
    cases = [
        pytest.param(recipe, compiled, marks=mark)
        for recipe, compiled, mark in zip(recipes.values(), eager, marks, strict=True)
    ]
    metafunc.parametrize("recipe, eager", cases, ids=recipes.keys())


def _named(place: str) -> Recipe:
    module, _, name = place.partition(":")
    if not name:
        raise pytest.UsageError(f"--estimator must be MODULE:NAME, found {place!r}")
    found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, Recipe) else Recipe(found, Claims())


def test_it_keeps_what_it_claims(recipe, eager):
    """All checks share a few compiled programs, so they are one test; each failure is reported."""
    subject, failures = Subject(recipe.make(), recipe.claims), []
    for name, check in claimed(recipe.claims):
        if name == "jit" and not eager:
            continue
        try:
            check(subject)
        except Exception as failure:
            failure.add_note(f"in check_{name}")
            failures.append(failure)
    if failures:
        raise ExceptionGroup("the estimator does not keep what it claims", failures)


def test_no_recipe_is_left_out():
    """All that the reference lists as recipes are in the registry."""
    here = Path(__file__)
    page = (here.parents[2] / "docs" / "api" / "estimators.md").read_text()
    sections = re.split(r"^## ", page, flags=re.M)
    listed = [
        name
        for section in sections
        if section.startswith("Recipes")
        for name in re.findall(r"autofunction:: (\w+)", section)
    ]
    assert len(listed) > 10
    source = (here.parent / "recipes.py").read_text()
    assert not [name for name in listed if f"zojax.{name}(" not in source]


def test_ones_own_is_found_by_name():
    assert _named("zojax:mezo") == Recipe(zojax.mezo, Claims())
    assert _named("tests.conformance.test_recipes:MINE").claims == RECIPES["mezo"].claims
    with pytest.raises(pytest.UsageError, match="MODULE:NAME, found 'mezo'"):
        _named("mezo")


MINE = RECIPES["mezo"]
