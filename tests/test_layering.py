"""Imports go one way, pure code stays pure, and every line of every plug-in table resolves.

All read off the syntax trees, so imports inside functions count too.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom up. A name stands for a module, or for a package with all that is not named apart.
LAYERS = (
    {"types", "naming"},
    {
        *("config", "overrides", "rules", "network_rules", "sharding", "tokenizers", "metrics"),
        *("checkpoint", "progress", "stopwatch", "profiler", "chips"),
    },
    {"models", "tasks", "llm", "privacy", "strategies", "rl"},
    {
        *("rollout", "rewards", "rl.update", "rl.imitation", "rl.traces", "rl.credit"),
        *("rl.branching", "rl.dual"),
        *("privacy.judge", "privacy.panel"),  # they ask an LLM; the rest of privacy knows none
    },
    {
        "assembly",
        "cold_start",
        "detectors",
        "finite",
        "samples",
        "episode_log",
        "report",
        "outcomes",
        "plots",
        "rl.steps",
        "usage",
    },
    {"solve_rate", "train", "evaluate", "calibrate", "helpers", "planning"},
    {"restore", "eval_log"},
    {"run", "main", "plan", "view"},
)
PURE = (
    r"collab\.models\.(?!weights).*",
    r"collab\.strategies(\..*)?",
    r"collab\.rollout\.(decode|state)",
    r"collab\.rl\.(?!imitation|traces|credit|batch|steps).*",
)
FORBIDDEN_IN_PURE = {"time", "os", "requests", "logging", "socket", "random", "pathlib"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    module_name(path): ast.parse(path.read_text(), str(path))
    for path in sorted((ROOT / "collab").rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """Dotted names of all modules that a module imports, submodules taken by `from` included."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(names & TREES.keys() or {node.module})
    return found


def unit(module: str) -> str:
    """The name in LAYERS that a module of ours belongs to."""
    name = module.removeprefix("collab.")
    named = set().union(*LAYERS)
    while name not in named:
        assert "." in name, f"{module} has no layer; give it one in LAYERS"
        name = name.rpartition(".")[0]
    return name


def layer(module: str) -> int:
    return next(height for height, names in enumerate(LAYERS) if unit(module) in names)


def links() -> set[tuple[str, str]]:
    """(importer, imported) among our modules."""
    return {
        (module, name)
        for module in TREES
        for name in imports(module)
        if name.startswith("collab.") and module != "collab"
    }


def test_imports_go_one_way() -> None:
    upward = {link for link in links() if layer(link[0]) < layer(link[1])}
    assert not upward


def test_no_circle_of_imports_between_units() -> None:
    """Within a layer a unit may use another, but never each other."""
    below: dict[str, set[str]] = {}
    for importer, imported in links():
        if unit(importer) != unit(imported):
            below.setdefault(unit(importer), set()).add(unit(imported))
    free = {name for names in LAYERS for name in names} - below.keys()
    while ready := {name for name, needs in below.items() if needs <= free}:
        free |= ready
        below = {name: needs for name, needs in below.items() if name not in ready}
    assert not below


def test_only_models_import_flax() -> None:
    users = {
        module for module in TREES if any(name.split(".")[0] == "flax" for name in imports(module))
    }
    assert users
    assert {unit(module) for module in users} == {"models"}


def test_only_checkpoint_imports_orbax() -> None:
    users = {
        module for module in TREES if any(name.split(".")[0] == "orbax" for name in imports(module))
    }
    assert users == {"collab.checkpoint"}


def test_types_and_config_import_no_jax() -> None:
    for module in ("collab.types", "collab.config"):
        assert not {name for name in imports(module) if name.split(".")[0] in ("jax", "flax")}


@pytest.mark.parametrize("pattern", PURE)
def test_pure_modules_have_no_clock_no_files_no_logging(pattern: str) -> None:
    modules = [module for module in TREES if re.fullmatch(pattern, module)]
    assert modules, "the pattern names no module"
    for module in modules:
        roots = {name.split(".")[0] for name in imports(module)}
        assert not roots & FORBIDDEN_IN_PURE, module


# --- plug-in tables ------------------------------------------------------------------------


def tables() -> dict[str, dict[str, str]]:
    """Every module-level table of `"name": "module:Class"` in a package's __init__."""
    found = {}
    for module, tree in TREES.items():
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            target = node.target if isinstance(node, ast.AnnAssign) else target
            value = getattr(node, "value", None)
            if not (isinstance(target, ast.Name) and isinstance(value, ast.Dict)):
                continue
            rows = [
                (key.value, row.value)
                for key, row in zip(value.keys, value.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(row, ast.Constant)
            ]
            if rows and all(re.fullmatch(r"[\w.]+:\w+", str(text)) for _, text in rows):
                found[f"{module}.{target.id}"] = dict(rows)
    return found


def test_the_tables_are_found() -> None:
    expected = {
        "collab.tasks.TASKS",
        "collab.llm.BACKENDS",
        "collab.strategies.STRATEGIES",
        "collab.rl.OBJECTIVES",
    }
    assert expected <= tables().keys()


@pytest.mark.parametrize(
    ("table", "name", "target"),
    [(table, name, target) for table, rows in tables().items() for name, target in rows.items()],
    ids=lambda text: text,
)
def test_every_line_of_every_table_resolves(table: str, name: str, target: str) -> None:
    module, attribute = target.split(":")
    package = table.rpartition(".")[0]
    assert module.startswith(f"{package}."), f"{name!r} of {table} lies outside its package"
    assert callable(getattr(importlib.import_module(module), attribute))
