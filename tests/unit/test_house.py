"""The house as ARCHITECTURE.md draws it: who may import whom, what is named how, how large things are."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "upwell"
FILES = sorted(SOURCE.rglob("*.py"))
ALL_FILES = [*FILES, *sorted((ROOT / "lab").rglob("*.py")), *sorted((ROOT / "bench").rglob("*.py"))]

FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 600
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}

# floor → the modules at the root, and the folders, that it is made of: a row of the table in ARCHITECTURE.md
FLOORS = {
    "words": {"model.py", "errors.py"},
    "contracts": {"ports.py"},
    "rules": {
        "lanes.py", "envelope.py", "mapping.py", "where.py", "comparison.py", "items.py", "keytemplates.py",
        "clock.py", "failpoints.py", "tablepatterns.py", "claims.py", "heartbeat.py", "pgtext.py", "presentation.py",
        "exposure.py",
    },
    "configuration": {"config.py", "configfile.py", "settings.py"},
    "aws": {"aws.py", "aws_errors.py", "http1.py", "sigv4.py", "s3.py", "rights.py"},
    "tables": {"dynamodb_tables.py"},
    "outside": {"sources/", "sinks/", "streams/", "targets/", "readers/", "state/"},
    "flow": {"pipeline/"},
    "doors": {"app/", "cloud/"},
}  # fmt: skip
MAY_IMPORT = {
    "words": {"words"},
    "contracts": {"words"},
    "rules": {"words", "contracts", "rules"},
    "configuration": {"words", "rules", "configuration"},
    "aws": {"words", "aws"},
    "tables": {"words", "contracts", "rules", "aws"},
    "outside": {"words", "contracts", "rules", "aws", "tables", "outside"},  # of it, only the own folder: see below
    "flow": {"words", "contracts", "rules", "flow"},
    "doors": set(FLOORS),
}
# package → the modules that import it, when it is needed and not before
DRIVERS = {
    "psycopg": {"sources.postgres_session", "targets.postgres_session", "readers.postgres"},
    "mssql_python": {"sources.sqlserver_session"},
    "pytds": {"sources.sqlserver_session"},
    "botocore": {"aws"},
    "sqlglot": {"where"},
    "starlette": {"cloud.read_api"},
    "uvicorn": {"app.api"},
    "mangum": {"cloud.read_api_lambda"},
    "jwt": {"cloud.authorization", "cloud.jwks"},
    "cryptography": {"cloud.cursors", "sources.sqlserver_session"},
}
FOREIGN = {"click": "app", "rich": "app", "pydantic": "settings|config", "yaml": "configfile|app"}
DATABASES = ("postgres", "sqlserver", "sqlite", "kinesis", "dynamodb", "stdout")
OF_A_DATABASE = {"sources.pgoutput": "postgres"}


class Import(NamedTuple):
    """`module` imports `name` from `target`."""

    module: str
    target: str
    names: tuple[str, ...]
    inside: bool  # a function: only when it is needed
    for_types: bool


def path(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES if file.parent != SOURCE or not file.name.startswith("__")}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def imports_of(module: str) -> Iterator[Import]:
    def below(node: ast.AST, inside: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(module, alias.name, (), inside, for_types) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}: names are written in full"
                assert child.module is not None
                yield from from_(child, child.module, inside, for_types)
            else:
                types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                function = isinstance(child, ast.FunctionDef | ast.Lambda)
                yield from below(child, inside or function, for_types or types)

    def from_(node: ast.ImportFrom, target: str, inside: bool, for_types: bool) -> Iterator[Import]:
        modules = [alias.name for alias in node.names if f"{target}.{alias.name}".removeprefix("upwell.") in MODULES]
        names = tuple(alias.name for alias in node.names if alias.name not in modules)
        yield from (Import(module, f"{target}.{name}", (), inside, for_types) for name in modules)
        if names:
            yield Import(module, target, names, inside, for_types)

    return below(tree(MODULES[module]), False, False)


IMPORTS = [found for module in MODULES for found in imports_of(module)]
OURS = [
    found._replace(target=found.target.removeprefix("upwell").removeprefix("."))
    for found in IMPORTS
    if found.target.partition(".")[0] == "upwell"
]


def top(module: str) -> str:
    """The root's module, or the folder, that it is or lies in."""
    first, dot, _ = module.partition(".")
    return f"{first}/" if dot or MODULES[module].name == "__init__.py" else f"{first}.py"


def floor(module: str) -> str:
    return next(name for name, parts in FLOORS.items() if top(module) in parts)


def database(module: str) -> str | None:
    words = module.rpartition(".")[2].split("_")
    return OF_A_DATABASE.get(module) or next((name for name in DATABASES if name in words), None)


# --- imports ------------------------------------------------------------------------------------------------------


def test_every_module_has_its_floor() -> None:
    assert {top(module) for module in MODULES} == set().union(*FLOORS.values())


def test_the_architecture_has_a_row_for_every_floor() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rows = [set(re.findall(r"`(.+?)`", names)) for names in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)]
    assert rows == list(FLOORS.values())


def test_imports_point_one_way() -> None:
    assert len(OURS) > 200
    wrong = [
        f"{found.module} imports {found.target}"
        for found in OURS
        if floor(found.target) not in MAY_IMPORT[floor(found.module)]
    ]
    assert not wrong


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: {found.target for found in OURS if found.module == module} for module in MODULES}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_what_stands_between_us_and_one_outside_knows_no_other() -> None:
    inside = [found for found in OURS if floor(found.module) == floor(found.target) == "outside"]
    assert len(inside) > 20
    for found in inside:
        folders = {found.module.partition(".")[0], found.target.partition(".")[0]}
        assert len(folders) == 1, f"{found.module} imports {found.target}"
        databases = {database(found.module), database(found.target)} - {None}
        assert len(databases) == 1, f"{found.module} imports {found.target}"
        assert database(found.module) is not None, f"{found.module} belongs to no one, yet imports {found.target}"


def test_only_build_knows_the_classes_behind_the_ports() -> None:
    wrong = [
        f"{found.module} imports {name} of {found.target}"
        for found in OURS
        if floor(found.module) == "doors" and floor(found.target) == "outside" and not found.for_types
        for name in found.names
        if name[0].isupper() and not name.isupper() and not found.module.startswith("app.build")
    ]
    assert not wrong


def test_each_driver_is_imported_in_its_place_and_only_when_needed() -> None:
    seen = set()
    for found in IMPORTS:
        package = found.target.partition(".")[0]
        assert package not in ("boto3", "lab", "bench", "tests"), f"{found.module} imports {found.target}"
        if package in DRIVERS and not found.for_types:
            seen.add(package)
            assert found.module in DRIVERS[package], f"{found.module} imports {found.target}"
            assert found.inside, f"{found.module} imports {found.target} before it is needed"
        if package in FOREIGN:
            assert re.match(FOREIGN[package], found.module), f"{found.module} imports {found.target}"
    assert seen == DRIVERS.keys()


def test_the_program_and_all_its_parts_load_without_a_driver() -> None:
    modules = [f"upwell.{module}" for module in MODULES if not module.startswith("app.demo")]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded >= set(modules)
    assert not loaded & {*DRIVERS, "boto3", "rich"}


# --- names and sizes ----------------------------------------------------------------------------------------------


def test_modules_and_functions_can_be_read_at_once() -> None:
    long = [path(file) for file in ALL_FILES if len(file.read_text("utf-8").splitlines()) > MODULE_LINES_MAX]
    for file in ALL_FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                long += [f"{path(file)}: {node.name}"] if node.end_lineno - node.lineno >= FUNCTION_LINES_MAX else []
    assert not long


def test_what_is_public_says_what_it_is() -> None:
    silent = [path(file) for file in ALL_FILES if not ast.get_docstring(tree(file))]
    for file in FILES:
        for node in tree(file).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                silent += [] if ast.get_docstring(node) else [f"{path(file)}: {node.name}"]
    assert not silent


def test_modules_are_named_by_what_they_are_about() -> None:
    everything = [path(file) for file in (*ALL_FILES, *(ROOT / "tests").rglob("*.py"))]
    assert not [file for file in everything if NAMES_THAT_SAY_NOTHING & set(re.split(r"[/._]", file))]


# --- the version --------------------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert not [file for file in FILES if version in file.read_text("utf-8")]
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    said = subprocess.run([sys.executable, "-m", "upwell", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"upwell {version}\n"
