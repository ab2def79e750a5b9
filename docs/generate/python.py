"""The reference of the Python library and client, from the signatures and docstrings in their source."""

import ast
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from docs.generate import markdown

ROOT = Path(__file__).parents[2]

# Public import path, names, file that defines them.
_LIBRARY: Sequence[tuple[str, str, Sequence[tuple[str, Sequence[str], str]]]] = (
    (
        "Evaluate",
        "Robust accuracy of any model.",
        (("core.evaluation", ("evaluate",), "core/evaluation/autoattack.py"),),
    ),
    (
        "Train",
        "Runs as generators of events. To stop a run, stop iterating.",
        (
            ("core.training", ("fine_tune",), "core/training/run.py"),
            ("core.inputs", ("Inputs",), "core/inputs.py"),
        ),
    ),
    (
        "Checkpoints and data",
        "Files of a run, and the images it uses.",
        (
            ("core.checkpoint", ("load", "Header"), "core/checkpoint.py"),
            ("core.data", ("load", "Dataset"), "core/data/__init__.py"),
            ("core.data.split", ("Split",), "core/data/split.py"),
        ),
    ),
    (
        "Attacks",
        "`attack(model, images, labels, threat, options, **settings)`: images (batch, channels, height, width) in "
        "[0, 1], labels (batch,); `model` maps images to logits and is given back as it was. Random numbers come from "
        "`options` alone.",
        (
            ("core.attacks.threat", ("LpThreat", "UnionThreat"), "core/attacks/threat.py"),
            ("core.attacks", ("AttackOptions", "AttackResult"), "core/attacks/__init__.py"),
            ("core.attacks.apgd", ("apgd", "apgd_ce", "apgd_t"), "core/attacks/apgd.py"),
            ("core.attacks.fab", ("fab_t",), "core/attacks/fab.py"),
            ("core.attacks.square", ("square",), "core/attacks/square.py"),
            ("core.attacks.msd", ("msd",), "core/attacks/msd.py"),
            ("core.attacks.perceptual", ("perceptual",), "core/attacks/perceptual.py"),
        ),
    ),
    (
        "Other threats",
        "Attacks that no training prepares for, with the contract of all attacks, and common corruptions. By default "
        "the result of a point does not depend on the points beside it.",
        (
            ("core.threats.pixels", ("PixelsThreat", "sparse_pixels"), "core/threats/pixels.py"),
            ("core.threats.patches", ("PatchThreat", "patch"), "core/threats/patches.py"),
            ("core.threats.frames", ("FrameThreat", "frame"), "core/threats/frames.py"),
            ("core.threats.fog", ("FogThreat", "fog"), "core/threats/fog.py"),
            ("core.threats.snow", ("SnowThreat", "snow"), "core/threats/snow.py"),
            ("core.threats.gabor", ("GaborThreat", "gabor"), "core/threats/gabor.py"),
            ("core.threats.elastic", ("ElasticThreat", "elastic"), "core/threats/elastic.py"),
            ("core.threats.jpeg", ("JpegThreat", "jpeg"), "core/threats/jpeg.py"),
            ("core.threats.corruptions", ("corrupt",), "core/threats/corruptions/__init__.py"),
        ),
    ),
    (
        "Geometry",
        "Everything that depends on the norm.",
        (("core.geometry", ("length", "project", "ascend"), "core/geometry.py"),),
    ),
    (
        "Errors",
        "All that can be the user's fault derives from `UserError`.",
        (("core.schema.errors", (), "core/schema/errors.py"),),
    ),
)


def library_page() -> str:
    """Describe the functions and classes that a user of the library calls."""
    parts = [
        part
        for title, text, modules in _LIBRARY
        for part in (f"## {title}", text, *(each for module in modules for each in _module(*module)))
    ]
    return markdown.page(
        "Python library",
        "Use the library from a checkout or in an environment of its own "
        "([why](../decisions/0013-an-environment-of-its-own.md)). [Job spec](spec.md) describes `core.schema.spec`.",
        *parts,
    )


def client_page() -> str:
    """Describe the client: its resources and its errors."""
    return markdown.page(
        "Python client",
        "`from client import Temper`. The client needs neither torch nor the service's packages. Resources are "
        "attributes of a `Temper`, such as `temper.jobs`.",
        *_module("client", ("Temper",), "client/temper.py"),
        "## Resources",
        *_resources(),
        "## Errors",
        "Every error derives from `TemperError`.",
        *_module("client.errors", (), "client/errors.py"),
    )


def _resources() -> Iterator[str]:
    """Describe each class that is an attribute of `Temper`, which its docstring names."""
    for path in sorted((ROOT / "client" / "resources").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and "`temper." in _docstring(node):
                yield from _module(f"client.resources.{path.stem}", (node.name,), str(path.relative_to(ROOT)))


def _module(name: str, wanted: Sequence[str], file: str) -> Iterator[str]:
    """Describe the named definitions of a module, or all public ones where none is named."""
    tree = ast.parse((ROOT / file).read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.setdefault(node.name, node)
    for each in wanted or [name for name in found if not name.startswith("_")]:
        yield _definition(name, found[each], found)


def _definition(module: str, node: ast.stmt, siblings: Mapping[str, ast.stmt]) -> str:
    """Describe a function, or a class with its fields and methods, those of its bases in the same file included."""
    match node:
        case ast.ClassDef():
            bases = [siblings[name] for base in node.bases if (name := ast.unparse(base).partition("[")[0]) in siblings]
            methods = [each for owner in (node, *bases) for each in _methods(owner)]
            fields = markdown.table(("field", "type", "meaning"), _fields(node))
            parts = [f"### `{module}.{node.name}`", _docstring(node), fields]
            return "\n\n".join(part for part in (*parts, *(_method(node.name, each) for each in methods)) if part)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return f"### `{module}.{node.name}`\n\n{_signature(node)}\n\n{_docstring(node)}"
    raise TypeError(node)


def _methods(node: ast.stmt) -> Iterator[ast.FunctionDef]:
    """Go through the public methods of a class that have a docstring, which leaves out overloads."""
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and ast.get_docstring(each):
            yield each


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    """Go through the annotated fields of a class, each with the text under it."""
    for each, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not each.target.id.startswith("_"):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    pass
                case _:
                    text = ""
            yield f"`{each.target.id}`", f"`{ast.unparse(each.annotation)}`", text


def _method(owner: str, node: ast.FunctionDef) -> str:
    return f"#### `{owner}.{node.name}`\n\n{_signature(node)}\n\n{_docstring(node)}"


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Show a signature as Python, a parameter per line where it is long."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({ast.unparse(node.args)}){result}"
    if len(line) > 100:
        line = f"{node.name}(\n{textwrap.indent(_parameters(node.args), '    ')}\n){result}"
    return f"```text\n{line}\n```"


def _parameters(arguments: ast.arguments) -> str:
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    lines = [_parameter(each, value) for each, value in zip(plain, defaults, strict=True)]
    if arguments.vararg:
        lines.append(f"*{_parameter(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        lines.append("*")
    lines += [_parameter(each, value) for each, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        lines.append(f"**{_parameter(arguments.kwarg, None)}")
    return ",\n".join(lines) + ","


def _parameter(argument: ast.arg, value: ast.expr | None) -> str:
    text = argument.arg + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
    return text + (f" = {ast.unparse(value)}" if value is not None else "")


def _docstring(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return ast.get_docstring(node) or ""
