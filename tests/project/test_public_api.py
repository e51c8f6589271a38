"""Promises about the project as a whole: names, documentation, imports, house rules."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "zojax"
API = ROOT / "docs" / "api"
# A room may import the rooms before it.
ORDER = (
    "noise",
    "virtual",
    "quantization",
    "directions",
    "estimators",
    "trainables",
    "optimizers",
    "planning",
    "blackbox",
    "parallel",
    "training",
    "models",
    "tasks",
    "cli",
)
ROOMS = [room for room in ORDER if (PACKAGE / room / "__init__.py").exists()]
CORE = ROOMS[: ROOMS.index("planning") + 1]
MAX_LINES = 330


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def text_files() -> list[Path]:
    folders = ("zojax", "pallas_kernels", "tests", "docs", "examples", ".ci")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    paths += ROOT.iterdir()
    binary = (".pyc", ".npz", ".png")
    made = ("_build", "__pycache__", ".ipynb_checkpoints")
    return sorted(
        path
        for path in paths
        if path.is_file() and path.suffix not in binary and not set(made) & set(path.parts)
    )


def public(room: str) -> dict[str, object]:
    module = importlib.import_module(f"zojax.{room}")
    return {name: getattr(module, name) for name in module.__all__}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_package_has_a_place_in_the_order():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_a_room_re_exports_its_names_and_holds_nothing_else(room):
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    imported = set()
    for node in tree.body[1:]:
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
        else:
            assert isinstance(node, ast.Assign), ast.unparse(node)
            assert ast.unparse(node.targets[0]) == "__all__"
    names = importlib.import_module(f"zojax.{room}".rstrip(".")).__all__
    assert set(names) == imported
    assert list(names) == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_docstring_of_its_own(room):
    without = []
    for name, value in public(room).items():
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue  # data: the reference describes it
        doc = value.__doc__ or ""
        # what NamedTuple and dataclass write themselves starts like a call
        if not doc.strip() or doc.startswith(f"{name}("):
            without.append(name)
    assert not without


@pytest.mark.parametrize("room", ROOMS)
def test_public_functions_say_what_they_take_and_give(room):
    incomplete = []
    for name, value in public(room).items():
        if not inspect.isfunction(value) or name.startswith("is_"):
            continue
        doc, signature = inspect.getdoc(value) or "", inspect.signature(value)
        brief = len(doc.splitlines()) == 1  # one line that says it all
        gives = signature.return_annotation not in (None, "None")
        if not brief and signature.parameters and "Args:" not in doc:
            incomplete.append(f"{name}: Args")
        if not brief and gives and not re.search(r"^(Returns|Yields):", doc, re.M):
            incomplete.append(f"{name}: Returns")
    assert not incomplete


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_lists_exactly_the_public_names(room):
    page = (API / f"{room}.md").read_text()
    listed = re.findall(r"^\.\. (?:auto\w+|data):: (\w+)$", page, re.M)
    assert sorted(listed) == sorted(public(room))


def test_the_reference_lists_the_top_level():
    page = (API / "index.md").read_text()
    top = importlib.import_module("zojax")
    listed = re.findall(r"`zojax\.(\w+) <zojax\.(\w+)\.(\w+)>`", page)
    assert sorted(name for name, _, _ in listed) == sorted(top.__all__)
    for name, room, target in listed:
        assert public(room)[target] is getattr(top, name)
    for room in ROOMS:
        assert re.search(rf"^{room}$", page, re.M)


def test_the_reference_lists_the_kernels():
    page = (API / "pallas_kernels.md").read_text()
    packages = [path.parent.name for path in (ROOT / "pallas_kernels").glob("*/__init__.py")]
    listed = re.findall(r"^\.\. (?:currentmodule|auto\w+):: (\S+)$", page, re.M)
    expected = []
    for package in packages:
        module = importlib.import_module(f"pallas_kernels.{package}")
        expected += [module.__name__, *module.__all__]
    assert sorted(listed) == sorted(expected)


def rooms_imported(path: Path) -> set[str]:
    """The names below zojax that a file imports, "zojax" for the top level itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{relative(path)}: relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            head, _, rest = module.partition(".")
            if head == "zojax":
                second = rest.partition(".")[0]
                known = second in ROOMS or second == "_compat"
                found.add(second if known else "zojax")
            elif head == "pallas_kernels":
                found.add(head)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    allowed = {"_compat", *ROOMS[: ROOMS.index(room) + 1]}
    if room != "noise":  # which the kernels stand on
        allowed.add("pallas_kernels")
    if rooms_imported(PACKAGE / "__init__.py") < allowed - {room}:
        allowed.add("zojax")
    for path in python_files(f"zojax/{room}"):
        assert rooms_imported(path) <= allowed, relative(path)


def test_the_compat_module_and_the_kernels_know_only_what_they_may():
    assert rooms_imported(PACKAGE / "_compat.py") == set()
    for path in python_files("pallas_kernels"):
        assert rooms_imported(path) <= {"noise", "pallas_kernels"}, relative(path)


def test_the_core_needs_jax_optax_and_numpy_alone():
    program = f"""
import importlib, sys

BLOCKED = {{"flax", "orbax", "tokenizers", "safetensors", "matplotlib", "tqdm", "tyro"}}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"the core imported {{name}}")

sys.meta_path.insert(0, Block())
import jax.numpy as jnp, optax, zojax
for room in {CORE!r}:
    importlib.import_module(f"zojax.{{room}}")
try:
    import flax
except ImportError as error:
    assert "the core imported flax" in str(error)
else:
    raise SystemExit("the block does not block")
loaded = {{name for name in sys.modules if name.startswith("zojax.")}}
print(sorted({{name.split(".")[1] for name in loaded}} - {{"_compat"}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == str(sorted(CORE))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_only_public_jax_is_used():
    for path in python_files("zojax", "pallas_kernels", "tests", "docs"):
        assert not [name for name in imports(path) if name.startswith("jax._")], relative(path)
        if path != Path(__file__).resolve():
            assert "jax._" + "src" not in path.read_text(), relative(path)


def test_modules_stay_short_enough_to_read_in_one_sitting():
    long = {
        relative(path): count
        for path in python_files("zojax", "pallas_kernels")
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long


FORBIDDEN = {
    "a path of someone's machine": r"(?<![\w.~$}>)])/(?:work|opt|root|home|Users|mnt|srv)/",
    "the host of a package registry": r"pypi\.org|pythonhosted|registry\.npmjs|huggingface\.co",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what):
    found = {
        relative(path): match[0]
        for path in text_files()
        if path != Path(__file__).resolve()
        and (match := re.search(FORBIDDEN[what], path.read_text()))
    }
    assert not found


def test_the_changelog_knows_the_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version and f"\n## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_make_target_in_the_documentation_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / ".ci" / "run"]
    for page in pages:
        code = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.M)
        assert set(code) <= targets, relative(page)


def test_local_links_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        if "_build" in page.parts:
            continue
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{relative(page)}: {link}"
