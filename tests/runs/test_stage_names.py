"""Only two tables name stages: the registry of what they are, and the declaration of their
settings. The rule, checked on the source of the library:

A string constant that is the label of a stage, or begins with one and a dot (a configuration key),
names that stage; so does the attribute `config.STAGE`. Two stages have the name of the part that
they train ("encoder", "codec"). Those names may stand where they address the part and not the
stage:

- as a subscript, `config["codec"]` or `frozen["encoder"]`, as the attribute `config.codec`, and
  at the beginning of a configuration key, "codec.init_from";
- as a key of a dict display that has another key which is no stage, or whose values are all taken
  out of another tree by subscripts (a tree of parts) or are `Subtree`s; any other display with keys
  that are stages only would choose by stage;
- as a member of a tuple or list that has another member which is no stage (a path, several parts);
- as the first argument of `Subtree`, which is a part, and of `in_module`, which names a module;
- as the value of the constant AUTOENCODER, a tree of weights and the folder of a copy.

Everywhere else (a comparison, an argument, a default, a case) they name the stage.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.packages import parsed
from unicom_jax.runs.stages import PARTS, STAGES

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = ROOT / "unicom_jax" / "runs" / "stages.py"
TABLES = (REGISTRY, ROOT / "unicom_jax" / "config" / "schema.py")


def is_stage(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in STAGES


def is_subtree(node: ast.AST) -> bool:
    called = isinstance(node, ast.Call) and ast.unparse(node.func) == "Subtree"
    return called or (isinstance(node, ast.Name) and node.id in ("VISION", "LATENTS"))


def addresses_a_part(node: ast.Constant, parent: ast.AST) -> bool:
    match parent:
        case ast.Subscript():
            return parent.slice is node
        case ast.Dict():
            taken = all(
                isinstance(value, ast.Subscript) or is_subtree(value) for value in parent.values
            )
            return node in parent.keys and (taken or not all(map(is_stage, parent.keys)))
        case ast.Call(func=ast.Name(id="Subtree" | "in_module")):
            return bool(parent.args) and parent.args[0] is node
        case ast.Tuple() | ast.List():
            return not all(map(is_stage, parent.elts))
        case ast.Assign(targets=[ast.Name(id="AUTOENCODER")]):
            return True
    return False


def stages_named(source: str) -> list[str]:
    """LINE: NAME of every place that names a stage."""
    found = []
    for parent in ast.walk(parsed(source)):
        of_config = isinstance(parent, ast.Attribute) and ast.unparse(parent.value) == "config"
        if of_config and parent.attr in STAGES.keys() - PARTS.keys():
            found.append(f"{parent.lineno}: config.{parent.attr}")
        for node in ast.iter_child_nodes(parent):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            name, dot, _ = node.value.partition(".")
            part = name in PARTS and (dot or addresses_a_part(node, parent))
            if name in STAGES and not part and " " not in node.value:
                found.append(f"{node.lineno}: {node.value}")
    return found


def test_no_module_but_the_two_tables_names_a_stage():
    files = [
        path for root in ("unicom_jax", "data_pipelines") for path in ROOT.glob(f"{root}/**/*.py")
    ]
    assert len(files) > 150 and REGISTRY in files
    named = {
        str(path.relative_to(ROOT)): found
        for path in files
        if path not in TABLES and (found := stages_named(path.read_text(encoding="utf-8")))
    }
    assert named == {}


def test_the_registry_itself_names_them_all():
    named = " ".join(stages_named(REGISTRY.read_text(encoding="utf-8")))
    assert all(name in named for name in STAGES)


@pytest.mark.parametrize(
    "source",
    [
        'if name != "encoder": pass',
        'stage_steps(workdir, "codec")',
        'makers = {"encoder": one, "codec": two}',
        'ORDER = ("encoder", "codec")',
        'if name in ("encoder",): pass',
        'settings = config["sft"]',
        "steps = config.pretrain.steps",
        'LATER = {"align.noisy_copies": 1, "seed": 0}',
        'def show(stage="pretrain"): pass',
        'match name:\n    case "codec": pass',
        'NAME = "autoencoder"',
    ],
)
def test_the_checker_reports_a_place_that_names_a_stage(source):
    assert len(stages_named(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        'pool = config["codec"]["pool"]',
        "width = config.encoder.vision.width",
        'vision = frozen["encoder"]',
        'params = {"vision": one, "codec": two}',
        'frozen = {"encoder": params["vision"], "codec": params["codec"]}',
        'path = ("codec", "pixel_decoder")',
        'key = "codec.init_from"',
        '"""Stages such as sft and pretrain."""',
        "continue_at = x.align",
        'vision = Subtree("encoder", "vision")',
        'frozen = {"encoder": VISION, "codec": Subtree("codec")}',
        'AUTOENCODER = "autoencoder"  # a tree of weights',
    ],
)
def test_the_checker_accepts_what_addresses_a_part(source):
    assert stages_named(source) == []
