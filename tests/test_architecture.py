"""Rules that hold the tree together: imports, the seam, the single detach, the size of files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ppll

SOURCE = Path(ppll.__file__).parent
MODULES = {
    ".".join(["ppll", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in sorted(SOURCE.rglob("*.py"))
}
LEARNING = (
    "block",
    "updates",
    "alone",
    "blueprint",
    "optimization",
    "methods",
    "losses",
    "auxiliary",
    "models",
)
TRANSPORT = ("channels",)
PROCESSES = (
    *("launch", "agent", "lifeline", "rank", "rank_process", "worker", "fork_server"),
    *("in_process", "restarts", "starting", "trainer", "exchange", "sharding", "adding"),
)
TORCHLESS = (
    *("config", "recipe_files", "resume", "manifest", "data_facts", "claim", "durable"),
    *("randomness", "errors", "registry", "status", "stall", "failure", "cli"),
    *("section", "sections", "recipe_text", "interrupts", "torchrun", "fork_server"),
    *("json_lines", "tracing", "trace_files", "timeline", "trace_summary", "advice", "lanes"),
    *("markup", "charts", "report_data", "report_sections", "report"),
    *(
        "cuts",
        "placement",
        "costs",
        "balance",
        "simulate",
        "schedules",
        "plan",
        "planned",
        "processes",
        "rivals",
        "sharing",
        "clusters",
        "line_times",
        "mesh",
        "ending",
    ),
)


def nodes_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: no functions, nothing for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        checks_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not checks_types and not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield node
            yield from nodes_at_import(node)


def imported(path: Path, *, anywhere: bool = False) -> set[str]:
    """The modules of ppll that a file imports, at import or ``anywhere``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if anywhere else nodes_at_import(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & MODULES.keys()
            found |= (
                submodules if len(submodules) == len(names) else {str(node.module), *submodules}
            )
    return found & MODULES.keys()


def part(module: str) -> str:
    """The file or shelf at the top of the package that a module belongs to."""
    return module.removeprefix("ppll.").partition(".")[0]


def modules_of(parts: tuple[str, ...]) -> list[str]:
    found = [module for module in MODULES if part(module) in parts]
    assert {part(module) for module in found} == set(parts)
    return found


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: imported(path) for module, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


def test_the_pure_part_needs_no_torch() -> None:
    names = ", ".join(f"ppll.{name}" for name in TORCHLESS)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("module", modules_of(LEARNING))
def test_learning_knows_no_processes(module: str) -> None:
    found = {part(name) for name in imported(MODULES[module], anywhere=True)}
    assert not found & {*TRANSPORT, *PROCESSES}


@pytest.mark.parametrize("module", modules_of(TRANSPORT))
def test_transport_knows_no_losses(module: str) -> None:
    found = {part(name) for name in imported(MODULES[module], anywhere=True)}
    assert not found & {*LEARNING, *PROCESSES}


def test_what_leaves_a_block_is_detached_in_one_place() -> None:
    """A socket's ``detach`` hands over a descriptor and is no concern of learning."""
    found = [
        (module, ast.unparse(node))
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("detach", "detach_")
    ]
    of_tensors = [(m, text) for m, text in found if not text.endswith("socket.detach")]
    assert of_tensors == [("ppll.block", "tensor.detach")]


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 350
