"""A demonstration task that needs no download: what is a docstring of the library about?"""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zojax.tasks._random import permutation

# The label names, in plain words for a zero-shot classifier, and the top-level modules of each.
# A module that a version of Python lacks is passed over. Many systems install Python without Tk:
# there the topic that needs it is passed over too, and the last one stands in.
_GRAPHICS = "windows, widgets and graphics"
TOPICS: dict[str, str] = {
    "internet protocols, mail and the web": (
        "cgi email ftplib http imaplib ipaddress mailbox mailcap mimetypes netrc nntplib poplib "
        "smtpd smtplib socket socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc"
    ),
    "threads, processes and asynchronous tasks": (
        "_threading_local asynchat asyncio asyncore concurrent multiprocessing queue sched "
        "selectors subprocess threading"
    ),
    "files, directories and archives": (
        "_compression _pyio bz2 compression filecmp fileinput fnmatch genericpath glob gzip io "
        "lzma ntpath os pathlib posixpath shutil stat tarfile tempfile zipapp zipfile"
    ),
    "text, markup and character encodings": (
        "base64 codecs configparser csv difflib encodings gettext html json locale plistlib "
        "pprint quopri re string stringprep textwrap tomllib xml"
    ),
    "numbers, dates and times": (
        "_pydatetime _pydecimal _pylong _strptime calendar datetime decimal fractions numbers "
        "operator random statistics zoneinfo"
    ),
    "unit tests, debugging and profiling": (
        "bdb cProfile doctest pdb profile profiling pstats timeit trace traceback tracemalloc "
        "unittest"
    ),
    _GRAPHICS: "idlelib tkinter turtle",
    "source code, imports and types": (
        "annotationlib ast code codeop dis importlib inspect modulefinder pkgutil py_compile "
        "pyclbr pydoc runpy symtable tabnanny token tokenize types typing zipimport"
    ),
}
_NUM_TOPICS = range(2, 8)
_TEST_FOLDERS = {"test", "tests", "idle_test"}
_MIN_WORDS = 3
_TEST_SHARE = 0.25


class DocstringTask(NamedTuple):
    """Docstrings to tell apart by topic; no file has docstrings in both splits.

    Attributes:
        train_texts: N texts.
        train_labels: int32[N], indices into `names`.
        test_texts: The texts to report on.
        test_labels: Their labels.
        names: The name of each topic.
        train_files: The file that each train text is from, relative to the library.
        test_files: The file that each test text is from.
    """

    train_texts: list[str]
    train_labels: np.ndarray
    test_texts: list[str]
    test_labels: np.ndarray
    names: list[str]
    train_files: list[str]
    test_files: list[str]


class _Docstring(NamedTuple):
    text: str
    label: int
    file: str


def docstring_topics(num_topics: int = 7, limit: int | None = None, seed: int = 0) -> DocstringTask:
    """Docstrings of the running Python's own library, labelled by what their module is for.

    The library's files are parsed, never imported. A text is the name of a class or function
    and its docstring, such as "Fraction.limit_denominator: Closest Fraction to self with
    denominator at most max_denominator", or the docstring of a module. Docstrings of fewer
    than three words are left out, and so is every repetition of one. About a quarter of each
    topic is for testing, whole files of it. The result depends on the version of Python and
    the arguments alone, but for the seventh topic: a Python without Tk has another one there.

    Args:
        num_topics: How many topics, 2 to 7.
        limit: At most how many docstrings, the largest topics thinned first; all if None.
        seed: Which files are for testing, and the order of the texts.

    Returns:
        The task.

    Raises:
        FileNotFoundError: If the library has no source files, as in a frozen Python.
        ValueError: If an argument is out of range.
    """
    if num_topics not in _NUM_TOPICS:
        raise ValueError(f"num_topics={num_topics}; expected {_NUM_TOPICS[0]} to {_NUM_TOPICS[-1]}")
    if limit is not None and limit < 4 * num_topics:
        raise ValueError(f"limit={limit}; expected at least 4 a topic, {4 * num_topics}")
    library = Path(sysconfig.get_path("stdlib"))
    has_tk = (library / "tkinter" / "__init__.py").is_file()
    names = [name for name in TOPICS if has_tk or name != _GRAPHICS][:num_topics]
    by_topic = _collect(library, names)
    quotas = _level([len(docstrings) for docstrings in by_topic], limit)
    splits: tuple[list[_Docstring], list[_Docstring]] = ([], [])
    for label, (docstrings, quota) in enumerate(zip(by_topic, quotas, strict=True)):
        num_test = max(1, round(_TEST_SHARE * quota))
        train, test = _split_files(docstrings, seed, label)
        test = _sample(test, num_test, seed, label)
        splits[0].extend(_sample(train, quota - len(test), seed, label))
        splits[1].extend(test)
    train, test = (_sample(split, len(split), seed, len(names)) for split in splits)
    return DocstringTask(
        train_texts=[d.text for d in train],
        train_labels=np.array([d.label for d in train], np.int32),
        test_texts=[d.text for d in test],
        test_labels=np.array([d.label for d in test], np.int32),
        names=names,
        train_files=[d.file for d in train],
        test_files=[d.file for d in test],
    )


def _collect(library: Path, names: list[str]) -> list[list[_Docstring]]:
    """The distinct docstrings of each topic, in the order of their files."""
    seen: set[str] = set()
    by_topic = []
    for label, name in enumerate(names):
        docstrings = []
        for path in sorted(p for module in TOPICS[name].split() for p in _sources(library, module)):
            file = path.relative_to(library).as_posix()
            for owner, text in _read_docstrings(path):
                if len(text.split()) >= _MIN_WORDS and text not in seen:
                    seen.add(text)
                    text = f"{owner}: {text}" if owner else text
                    docstrings.append(_Docstring(text, label, file))
        if not docstrings:
            raise FileNotFoundError(
                f"{library}: no docstrings of the modules {TOPICS[name]}; expected the source "
                "files of the standard library, which this Python comes without"
            )
        by_topic.append(docstrings)
    return by_topic


def _sources(library: Path, module: str) -> Iterator[Path]:
    single = library / f"{module}.py"
    if single.is_file():
        yield single
    for path in (library / module).rglob("*.py"):
        if not _TEST_FOLDERS & set(path.relative_to(library).parts):
            yield path


def _read_docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Each docstring of a file in one line, with the dotted name of its owner."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the library's own strings
        tree = ast.parse(path.read_bytes(), filename=str(path))
    waiting: list[tuple[ast.AST, str]] = [(tree, "")]
    while waiting:
        node, owner = waiting.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            owner = f"{owner}.{node.name}" if owner else node.name
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield owner, " ".join(text.split())
        waiting.extend((child, owner) for child in reversed(list(ast.iter_child_nodes(node))))


def _split_files(
    docstrings: list[_Docstring], seed: int, label: int
) -> tuple[list[_Docstring], list[_Docstring]]:
    """Train and test: files in random order go to the test split while they fit its share."""
    sizes: dict[str, int] = {}
    for docstring in docstrings:
        sizes[docstring.file] = sizes.get(docstring.file, 0) + 1
    files = list(sizes)
    room = max(round(_TEST_SHARE * len(docstrings)), min(sizes.values()))
    test_files = set()
    for i in permutation(len(files), seed, label):
        if sizes[files[i]] <= room:
            room -= sizes[files[i]]
            test_files.add(files[i])
    return (
        [d for d in docstrings if d.file not in test_files],
        [d for d in docstrings if d.file in test_files],
    )


def _sample(docstrings: list[_Docstring], num: int, seed: int, salt: int) -> list[_Docstring]:
    return [docstrings[i] for i in permutation(len(docstrings), seed, salt, 1)[:num]]


def _level(sizes: list[int], limit: int | None) -> list[int]:
    """The sizes cut at one height, the greatest at which their sum is at most `limit`."""
    height = max(sizes)
    if limit is not None:
        height = max(h for h in range(height + 1) if sum(min(size, h) for size in sizes) <= limit)
    return [min(size, height) for size in sizes]
