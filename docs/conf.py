"""Sphinx configuration; `make docs` builds the pages without a network."""

import os
import re
from importlib.metadata import version as version_of

project = "zojax"
author = "the zojax authors"
release = version_of("zojax")
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Forward passes only", "fixed_sidebar": True}

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the examples

default_role = "code"
add_module_names = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# a site that does not answer is a warning, and warnings are errors: so only where it is asked for
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
        "optax": ("https://optax.readthedocs.io/en/latest", None),
        "flax": ("https://flax.readthedocs.io/en/latest", None),
    }
    if os.environ.get("ZOJAX_DOCS_ONLINE")
    else {}
)


_INLINE = re.compile(r":\w+:`[^`]+`|``[^`]+``|`([^`]+)`|\$([^$]+)\$|[*|]")


def _to_rst(match):
    code, formula = match.groups()
    if code:
        return f"``{code}``"
    if formula:
        return f":math:`{formula}`"
    return "\\" + match[0] if match[0] in "*|" else match[0]


def _docstring_to_rst(app, what, name, obj, options, lines):
    """Docstrings write code as `x`, formulas as $x$, and mean * and | as they are."""
    paragraphs = "\n".join(lines).split("\n\n")
    lines[:] = "\n\n".join(
        text if ">>>" in text else _INLINE.sub(_to_rst, text) for text in paragraphs
    ).split("\n")


def setup(app):
    # before napoleon, which takes the first colon outside of ``code`` for the end of a type
    app.connect("autodoc-process-docstring", _docstring_to_rst, priority=400)
