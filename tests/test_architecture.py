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
LEARNING = ("blocks", "methods", "losses", "auxiliary", "models")
TRANSPORT = ("channels",)
PROCESSES = (
    "launching",
    "hosts",
    "replicas",
    "checkpoints",
    "fork_server",
    "rank",
    "worker",
    "trainer",
)
TORCHLESS = (
    *("config", "section", "sections", "recipe_files", "recipe_text", "recipe_problems"),
    "own_class",
    "update_sections",
    *("registry", "cuts"),
    *("errors", "randomness", "durable", "json_lines", "data_facts", "claim", "interrupts"),
    *("mesh", "placement", "ending", "status", "torchrun", "fork_server", "cli.app"),
    "smallest_message",
    *("checkpoints.manifest", "checkpoints.resume", "launching.failure", "launching.stall"),
    *("planning.balance", "planning.costs", "planning.plan", "planning.planned"),
    *("planning.processes", "planning.rivals", "planning.sharing", "hosts.departure"),
    *("simulation.clusters", "simulation.line_times", "simulation.schedules"),
    *("simulation.simulate", "tracing.advice", "tracing.files", "tracing.lanes"),
    *("tracing.spans", "tracing.summary", "tracing.timeline"),
    *("reports.charts", "reports.data", "reports.markup", "reports.report", "reports.sections"),
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


def test_no_folder_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES.keys() - {"ppll"}:
        found = {part(name) for name in imported(MODULES[module]) - {"ppll"}}
        graph.setdefault(part(module), set()).update(found - {part(module)})
    assert set(TopologicalSorter(graph).static_order()) == set(graph)


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
    assert of_tensors == [("ppll.blocks.block", "tensor.detach")]


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 350
