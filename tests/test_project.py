"""The shape of the project: what may import what, what the library never does, sizes, pins, and clean files."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pangu_lab"

# In the order that data flows: a module imports from its own layer and from those above it in this list.
LAYERS = (
    (
        "errors",
        "identity",
        "files",
        "locking",
        "progress",
        "plotting",
        "compiling",
        "ranges",
        "lazy",
        "texts",
        "reading",
        "shipped",
        "schema",
        "cache",
    ),
    ("config", "setting_types", "presets", "memory"),
    ("corpus",),
    ("tokenizer",),
    ("data",),
    ("ops",),
    ("parallel",),
    ("model",),
    ("planner",),
    ("checkpoint",),
    ("runs", "interpret"),
    ("generate",),
    ("train",),
    ("launch",),
    ("export", "loading"),
    ("cluster",),
    ("evaluate",),
    ("lm",),
    ("serve",),
    ("demo", "doctor", "terminal", "start"),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = MODULES + sorted((ROOT / "widgets").rglob("*.py"))


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def part(path: Path) -> str:
    """``pangu_lab/train/loop.py`` → ``train``; the package's own ``__init__`` → an empty string."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def part_of_package(path: Path) -> str:
    return part(path) if path.is_relative_to(PACKAGE) else "widgets"


def imports(path: Path, module: ast.Module) -> list[tuple[int, str]]:
    """Line and full name of everything the module at ``path`` imports, inside functions too."""
    package = ("pangu_lab",) + path.relative_to(PACKAGE).parts[:-1]
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            # `from pangu_lab import config` imports a module: the name counts too
            names = [f"{source}.{alias.name}" for alias in node.names] if source == "pangu_lab" else [source]
            found += [(node.lineno, name) for name in names]
    return found


# ------------------------------------------------------------------------------------------------ architecture


def test_every_part_of_the_library_has_its_place_in_the_order():
    unknown = {part(path) for path in MODULES} - set(LEVEL) - {""}
    assert not unknown, f"add {unknown} to LAYERS, where data flows through it"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_a_module_imports_only_from_those_above_it(path):
    own = LEVEL.get(part(path), 0)
    for line, name in imports(path, tree(path)):
        if name.startswith("pangu_lab."):
            target = name.split(".")[1]
            if target in LEVEL:
                assert LEVEL[target] <= own, f"{label(path)}:{line} imports {name}, which stands below it"


def test_the_check_of_imports_sees_relative_ones_and_those_inside_functions():
    wrong = "def f():\n    from ..train import loop\n    from pangu_lab import serve\n    import pangu_lab.cli\n"
    found = imports(PACKAGE / "model" / "anything.py", ast.parse(wrong))
    assert found == [(2, "pangu_lab.train"), (3, "pangu_lab.serve"), (4, "pangu_lab.cli")]


HEAVY = {
    "mindspore",
    "gradio",
    "matplotlib",
    "fastapi",
    "uvicorn",
    "prometheus_client",
    "lm_eval",
    "tensorboardX",
    "swanlab",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def homes_of_lazy_names(path: Path) -> dict[str, str]:
    """The module behind each name that a package looks up later, as its ``lazy_names`` call says."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy_names":
            homes = ast.literal_eval(node.args[1])
            return {name: f"{module_name(path)}.{module}" for module, names in homes.items() for name in names}
    return {}


TREES = {module_name(path): path for path in SOURCES}
LAZY = {name: homes_of_lazy_names(path) for name, path in TREES.items() if path.name == "__init__.py"}


def imported_modules(node: ast.AST) -> set[str]:
    """What an import statement needs: the module itself, or the one that a name of it lives in."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    found = set()
    for alias in node.names:
        inner = f"{node.module}.{alias.name}"
        found.add(inner if inner in TREES else LAZY.get(node.module, {}).get(alias.name, node.module))
    return found


@functools.cache
def brings_something_heavy(name: str) -> bool:
    if name.split(".")[0] in HEAVY:
        return True
    if name not in TREES:
        return False
    statements = [node for node in tree(TREES[name]).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return any(brings_something_heavy(target) for node in statements for target in imported_modules(node))


@pytest.mark.parametrize("path", [path for path in SOURCES if part_of_package(path) != "cli"], ids=label)
def test_inside_functions_only_what_is_heavy_is_imported(path):
    """The command line is free of this: there a verb imports what it needs, so that ``--help`` is quick."""
    for function in ast.walk(tree(path)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                own = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("pangu_lab", "widgets")
                assert not own or any(map(brings_something_heavy, imported_modules(node))), (
                    f"{label(path)}:{node.lineno}: {ast.unparse(node)} stands at the top of the module"
                )


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=label)
def test_notebooks_import_from_packages(path):
    found = re.findall(r"(?:from|import) (pangu_lab(?:\.\w+){2,}|widgets(?:\.\w+)+)", path.read_text(encoding="utf-8"))
    assert not found, f"{label(path)} imports from {found}: take the name from the package, and add it there"


def test_importing_the_package_is_quick_and_brings_nothing_heavy():
    heavy = ("mindspore", "gradio", "jieba", "sentencepiece", "matplotlib", "pandas", "torch", "pydantic")
    code = (
        "import sys, pangu_lab, pangu_lab.config, pangu_lab.presets, pangu_lab.cli; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    seconds = time.monotonic() - start
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    assert seconds < 3, f"{seconds:.1f} s; on a quiet machine it takes about 0.2 s"


# ------------------------------------------------------------------------------- what the library never does

FORBIDDEN_CALLS = {"print", "exec", "eval", "input", "breakpoint"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_print_exec_pickle_or_shell(path):
    for node in ast.walk(tree(path)):
        where = f"{label(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.split(".")[0] for name in names} & FORBIDDEN_MODULES, f"{where} imports {names}"
        if isinstance(node, ast.Call):
            assert getattr(node.func, "id", "") not in FORBIDDEN_CALLS, f"{where} calls {ast.unparse(node.func)}()"
            assert ast.unparse(node.func) not in SHELLS, f"{where} goes through a shell"
            for keyword in node.keywords:
                on = not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
                assert not (keyword.arg in ("shell", "allow_pickle") and on), f"{where} {keyword.arg}="


# ------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_modules_and_functions_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    limit = 400 if path == PACKAGE / "model" / "pangu.py" else 600
    assert text.count("\n") <= limit, f"{label(path)} has {text.count(chr(10))} lines; at most {limit}"
    module = tree(path)
    assert ast.get_docstring(module) or not module.body, f"{label(path)} does not say what it is"
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - _begin(node)
            assert length <= 60, f"{label(path)}:{node.lineno} {node.name} has {length} lines; at most 60"


def _begin(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The line before the first statement: signature and docstring count for nothing."""
    first = node.body[0]
    return first.end_lineno if ast.get_docstring(node) is not None else first.lineno - 1


def test_notebook_cells_call_and_do_not_implement():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            source = "".join(cell["source"])
            if cell["cell_type"] != "code":
                continue
            lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
            assert len(lines) <= 10, f"{path.name}, cell {number}: {len(lines)} lines of code"
            defined = [word for word in ("def ", "class ") if re.search(rf"^\s*{word}", source, re.MULTILINE)]
            assert not defined or path.name.startswith("09"), f"{path.name}, cell {number} defines something"


# ----------------------------------------------------------------------------------------------- pins and files


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_environment_yml_names_the_same_pins_as_pyproject():
    project = pyproject()["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip[-1] == "-e ."
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert sorted(pip[:-1]) == sorted(wanted)
    python = next(Requirement(item.replace("=3", "==3")) for item in environment["dependencies"][:1])
    assert python.name == "python" and all(
        version in Requirement(f"python{project['requires-python']}").specifier
        for version in [next(iter(python.specifier)).version]
    )


def test_pins_have_an_upper_bound_and_are_met_here():
    from importlib import metadata

    for line in pyproject()["project"]["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(metadata.version(requirement.name)), line
        if requirement.name != "packaging":  # versioned by the calendar; everybody asks for a lower bound alone
            assert any(item.operator in ("<", "==") for item in requirement.specifier), f"{line}: no upper bound"


def test_the_package_brings_its_sample_and_its_command():
    settings = pyproject()
    assert settings["project"]["scripts"] == {"pangu-lab": "pangu_lab.cli:main"}
    patterns = settings["tool"]["setuptools"]["package-data"]["pangu_lab"]
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    others = {path for path in tracked_files() if PACKAGE in path.parents and path.suffix != ".py"}
    assert others and not others - shipped, f"not in the wheel: {sorted(map(label, others - shipped))}"


def tracked_files() -> list[Path]:
    """What git tracks or would track; every file where there is no git (an unpacked archive)."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    skipped = {".venv", ".git", ".pytest_cache", ".hypothesis", "__pycache__", "runs", "exports", "datasets", "built"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


def test_no_machine_paths_and_no_registry_hosts():
    wrong = re.compile(
        "|".join(
            (
                r"/(?:work|root|farm)/[a-z.]",
                r"files\.python" r"hosted",
                r"pypi\." r"org",
                r"registry\." r"npmjs",
                r"deb\." r"debian",
            )
        )
    )
    for path in tracked_files():
        if path.stat().st_size < 2_000_000 and path != Path(__file__):
            found = wrong.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{label(path)}: {found.group()}"


# The lowest versions without a known hole, of what a page or a stranger's file reaches; pyproject.toml begins no lower.
WITHOUT_KNOWN_HOLES = {
    "jupyterlab": "4.6.4",
    "jupyter-server": "2.20",
    "sentencepiece": "0.2.1",
    "tornado": "6.5.5",
    "python-multipart": "0.0.27",
    "gradio": "6.31",
}


@pytest.mark.parametrize("name", WITHOUT_KNOWN_HOLES)
def test_what_is_installed_and_what_may_be_has_no_known_hole(name):
    floor = Version(WITHOUT_KNOWN_HOLES[name])
    wanted = {item.name: item for item in map(Requirement, pyproject()["project"]["dependencies"])}[name]
    lowest = min(Version(part.version) for part in wanted.specifier if part.operator in (">=", "=="))
    assert lowest >= floor and Version(metadata.version(name)) >= floor


def test_no_tracked_file_is_large_or_made_by_running():
    for path in tracked_files():
        weights = label(path).startswith("pangu_lab/weights/")  # of the models that come with the lab; see test_shipped
        assert path.stat().st_size < (10_000_000 if weights else 2_000_000), f"{label(path)} is large"
        made = path.suffix in {".ckpt", ".mindir", ".safetensors", ".mindrecord", ".pyc", ".so"}
        assert not made or weights or label(path).startswith("tests/fixtures/"), label(path)


# --------------------------------------------------------------------------------------------- the two commands


def run_script(name: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["/bin/sh", str(ROOT / "scripts" / name)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def fake_python(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_python_that_only_pretends_to_be_there_is_passed_over(tmp_path):
    fake_python(tmp_path, "python3.11", "echo 'not selected' >&2; exit 127")
    good = fake_python(tmp_path, "python3.12", f'exec "{sys.executable}" "$@"')
    found = run_script("find_python.sh", PATH=str(tmp_path), HOME=str(tmp_path))
    assert (found.stdout.strip(), found.returncode) == (str(good), 0)


def test_no_supported_python_is_said_in_one_line(tmp_path):
    fake_python(tmp_path, "python3", "exit 1")
    found = run_script("find_python.sh", PATH=str(tmp_path), HOME=str(tmp_path))
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.count("\n") == 1 and "no Python 3.10, 3.11 or 3.12" in found.stderr


def test_a_named_python_that_does_not_run_is_not_replaced_by_another(tmp_path):
    fake_python(tmp_path, "python3.11", f'exec "{sys.executable}" "$@"')
    found = run_script("find_python.sh", PATH=str(tmp_path), HOME=str(tmp_path), PYTHON="python9")
    assert found.returncode == 1 and found.stderr.count("\n") == 1 and "PYTHON=python9" in found.stderr


def test_system_packages_never_fail_a_run_and_say_why_they_do_nothing(tmp_path):
    done = run_script("system_packages.sh", PATH=str(tmp_path))
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and "no apt-get here" in done.stdout


def test_make_alone_lists_the_targets_and_ci_runs_the_tests():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    for target in ("demo", "lab", "test", "test-all", "test-browser", "bench", "bench-large", "notebooks", "clean"):
        assert f"make {target} " in listed
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()
