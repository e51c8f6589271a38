"""`--estimator module:name` runs the suite on an estimator of one's own."""


def pytest_addoption(parser):
    parser.addoption(
        "--estimator",
        default=None,
        metavar="MODULE:NAME",
        help="a function that returns an estimator, or a tests.conformance.recipes.Recipe",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--estimator", default=None) is not None:
        asked = [item for item in items if "recipe" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in asked])
        items[:] = asked
