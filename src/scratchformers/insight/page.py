"""A model as one file that needs torch and einops alone: its page, and what that page uses of the other files.

It is made of our own source, not kept beside it: definitions are gathered by the names they use, annotations taken out
(shapes become a comment), and `Pretrained`, which loads and saves, gives way to `nn.Module`, our linear to torch's.
"""

import ast
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import scratchformers

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT.name
MIXIN = "Pretrained"
TORCHS = {f"{PACKAGE}.linear": {"Linear": "nn.Linear", "linear": "F.linear"}}  # what is ours for its speed alone
WIDTH = 120
SHAPED = ("Float", "Int", "Bool")
SET = (ast.Assign, ast.AugAssign)
SCOPES = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)  # of variables
HEADER = '''"""{about}

Printed by `scratchformers page {name}` {version}, MIT licence. It needs torch and einops only, and is
yours to change. Its parameters are named as there, so published weights come in by way of a state dict:

    torch.save(scratchformers.load(source).state_dict(), "weights.pt")  # once, where scratchformers is installed
    model = {model}(PRESETS["{preset}"]).eval()
    model.load_state_dict(torch.load("weights.pt"))
{parts}"""'''


@dataclass(frozen=True)
class Module:
    """One of our files, its annotations taken out."""

    path: str
    tree: ast.Module
    lines: list[str]
    definitions: dict[str, list[ast.stmt]]  # by the names they define, with what adds to them
    imports: dict[str, tuple[str, str]]  # name here -> (module, name there or "")
    models: list[str]  # the classes that loaded and saved, which is what makes them models

    def text(self, node: ast.stmt) -> str:
        """The statement with the comments right above it."""
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1
        while first and self.lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first : node.end_lineno])


def names() -> list[str]:
    """Of the models there are pages of."""
    return sorted(path.stem.replace("_", "-") for path in (ROOT / "models").glob("*.py") if path.stem != "__init__")


def page(name: str) -> str:
    """The one file for the model of this name. Raises ValueError where there is no such model."""
    if name not in names():
        raise ValueError(f"There is no model {name!r}: expected one of {', '.join(names())}.")
    own = _read(f"{PACKAGE}.models.{name.replace('-', '_')}")
    needed = _gather(own, ["PRESETS", *own.models])
    first = next(_presets(own, "PRESETS"))
    about = ast.get_docstring(own.tree) or ""
    (model,) = own.definitions[own.models[-1]]
    unset = [_unset(node) for node in ast.walk(model) if isinstance(node, ast.Assign)]
    parts = (
        f"\nSet {', '.join(filter(None, unset))} first, where the weights have them, and another head.\n"
        if any(unset)
        else ""
    )
    facts = {"about": about, "name": name, "version": scratchformers.__version__, "model": own.models[-1]}
    asks = any(ast.unparse(node) == "self.generation" for node in ast.walk(model))
    parts += "\nmodel.start asks model.generation.start what to begin with.\n" if asks else ""
    facts["parts"] = parts
    parts = [HEADER.format(**facts, preset=first), "\n\n".join(_imports(needed))]
    for module, nodes in needed:
        said = "" if module is own or MIXIN in module.definitions else ast.get_docstring(module.tree) or ""
        heading = [f"# --- {module.path}", *(f"# {line}".rstrip() for line in said.splitlines())]
        gap = "\n\n" if isinstance(nodes[0], ast.Assign) else "\n\n\n"
        parts.append("\n".join(heading) + gap + _spaced(module, nodes))
    return "\n\n".join(parts[:3]) + "".join(f"\n\n\n{part}" for part in parts[3:]) + "\n"


def _read(dotted: str, fields: frozenset[str] | None = None) -> Module:
    """`fields` are those of the model's config, where not all are this file's own."""
    path = _path(dotted)
    written = path.read_text(encoding="utf-8")
    source = ast.parse(written)
    text = _plain(written, _fields(source) if fields is None else fields)
    tree = ast.parse(text)
    definitions: dict[str, list[ast.stmt]] = {}
    imports = {name: (there, name) for there, name in _reached(source)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            imports |= {each.asname or each.name: (node.module or "", each.name) for each in node.names}
        elif isinstance(node, ast.Import):
            imports |= {each.asname or each.name: (each.name, "") for each in node.names}
        else:
            for name in _defined(node):
                definitions.setdefault(name, []).append(node)
    kinds = [node for node in source.body if isinstance(node, ast.ClassDef)]
    models = [node.name for node in kinds if any(_is(base, MIXIN) for base in node.bases)]
    return Module(path.relative_to(ROOT).as_posix(), tree, text.splitlines(), definitions, imports, models)


def _path(dotted: str) -> Path:
    return ROOT.joinpath(*dotted.split(".")[1:]).with_suffix(".py")


def _fields(tree: ast.Module) -> frozenset[str]:
    """Of the dataclasses in a file."""
    kinds = [node for node in tree.body if isinstance(node, ast.ClassDef) and _keeps_fields(node)]
    return frozenset(name for kind in kinds for node in kind.body for name in _defined(node))


def _keeps_fields(node: ast.ClassDef) -> bool:
    """Whether its annotations say what it holds."""
    return any("dataclass" in ast.unparse(each) for each in node.decorator_list) or any(
        _is(base, "NamedTuple") for base in node.bases
    )


def _files(tree: ast.Module) -> dict[str, str]:
    """Our files that are imported as such, by their names here: `grid` of `from scratchformers import grid`."""
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)]
    named = {each.asname or each.name: f"{node.module}.{each.name}" for node in found for each in node.names}
    return {name: dotted for name, dotted in named.items() if _path(dotted).is_file()}


def _within(tree: ast.AST, files: dict[str, str]) -> list[tuple[ast.Attribute, str]]:
    """What is reached through a file, `grid.take`, and that file."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    named = [(node, node.value.id) for node in found if isinstance(node.value, ast.Name)]
    return [(node, files[name]) for node, name in named if name in files]


def _reached(tree: ast.Module) -> set[tuple[str, str]]:
    return {(there, node.attr) for node, there in _within(tree, _files(tree))}


def _presets(module: Module, table: str) -> Iterator[str]:
    """The keys of a table, or of the tables that it is made of, a row of each of theirs."""
    for node in module.definitions[table]:
        yield from _keys(node)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.DictComp):
            other = ast.unparse(node.value.generators[0].iter).removesuffix(".items()")
            there = module if other in module.definitions else _read(module.imports[other][0])
            yield from _presets(there, other)


def _keys(node: ast.stmt) -> Iterator[str]:
    """Those that a statement puts into a table, as far as they are written out."""
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
        yield from (ast.literal_eval(key) for key in node.value.keys if isinstance(key, ast.Constant))
    if isinstance(node, ast.Assign):
        yield from (ast.literal_eval(each.slice) for each in node.targets if isinstance(each, ast.Subscript))


def _unset(node: ast.Assign) -> str:
    """model.x of `self.x = None`: a part that a new model has not."""
    target, none = node.targets[0], isinstance(node.value, ast.Constant) and node.value.value is None
    return f"model.{target.attr}" if none and isinstance(target, ast.Attribute) else ""


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    one = isinstance(node, ast.AnnAssign | ast.AugAssign)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if one else []
    every = [each for target in targets for each in (target.elts if isinstance(target, ast.Tuple) else [target])]
    every = [each.value if isinstance(each, ast.Subscript) else each for each in every]
    return [each.id for each in every if isinstance(each, ast.Name)]


# --- what is gathered


def _gather(own: Module, roots: list[str]) -> list[tuple[Module, list[ast.stmt]]]:
    """The files needed, each after those it needs, with the statements needed of each in their own order."""
    modules, order, wanted = {own.path: own}, list[str](), dict[str, set[str]]()
    fields = _fields(own.tree)

    def visit(module: Module, name: str) -> None:
        if name in wanted.setdefault(module.path, set()):
            return
        wanted[module.path].add(name)
        for used in sorted(_used(module.definitions[name])):
            if used in module.definitions:
                visit(module, used)
            elif (found := module.imports.get(used)) and found[0].split(".")[0] == PACKAGE and found[1] != MIXIN:
                other = _read(found[0], fields)
                visit(modules.setdefault(other.path, other), found[1])
        if module.path not in order and module is not own:
            order.append(module.path)

    for root in roots:
        visit(own, root)
    files = [modules[path] for path in [*order, own.path]]
    nodes = {m.path: {id(node) for name in wanted[m.path] for node in m.definitions[name]} for m in files}
    return [(m, [node for node in m.tree.body if id(node) in nodes[m.path]]) for m in files]


def _used(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that mean something outside of these."""
    found = set[str]()
    for node in nodes:
        own = {node.id} if isinstance(node, ast.Name) else set()
        within = own | _used(ast.iter_child_nodes(node))
        found |= within - _bound(node) if isinstance(node, SCOPES) else within
    return found


def _bound(scope: ast.AST) -> set[str]:
    """Its arguments and variables."""
    stored = {each.id for each in ast.walk(scope) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return stored | {each.arg for each in ast.walk(scope) if isinstance(each, ast.arg)}


def _imports(needed: list[tuple[Module, list[ast.stmt]]]) -> Iterator[str]:
    """What comes from elsewhere: the standard library's, then the others', sorted as ruff does."""
    found: dict[str, tuple[str, str]] = {"nn": ("torch", "nn")}
    for module, nodes in needed:
        for name in _used(nodes) & module.imports.keys():
            source = module.imports[name]
            if source[0].split(".")[0] != PACKAGE:
                assert found.setdefault(name, source) == source, f"{name} means two things"
    for ours in (True, False):
        group = {n: s for n, s in found.items() if (s[0].split(".")[0] in sys.stdlib_module_names) is ours}
        plain = [f"import {s[0]}" + ("" if n == s[0] else f" as {n}") for n, s in group.items() if not s[1]]
        chosen: dict[str, list[str]] = {}
        for name, (source, there) in group.items():
            if there:
                chosen.setdefault(source, []).append(there if there == name else f"{there} as {name}")
        listed = [f"from {source} import {', '.join(sorted(got, key=_kind))}" for source, got in sorted(chosen.items())]
        if lines := [*sorted(plain), *listed]:
            yield "\n".join(lines)


def _kind(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _spaced(module: Module, nodes: list[ast.stmt]) -> str:
    out = module.text(nodes[0])
    for before, node in itertools.pairwise(nodes):
        text = module.text(node)
        if isinstance(before, SET) and isinstance(node, SET):
            gap = node.lineno - text.count("\n") - (before.end_lineno or 0) - 1 if node.end_lineno == node.lineno else 1
            out += "\n" * (1 + min(1, max(0, gap)))
        else:
            out += "\n\n\n"
        out += text
    return out


# --- what is taken out


Edit = tuple[int, int, bytes]  # from one byte to another, and what to put there


def _plain(text: str, fields: frozenset[str]) -> str:
    """The file without annotations, but for the fields of dataclasses and named tuples; shapes become a comment where
    there is room. What is reached through a file, `grid.take`, loses the file's name, and what a config checks of
    others than `fields` is left out."""
    text = re.sub("  # noqa.*", "", text)
    source, tree = text.encode(), ast.parse(text)
    starts = [0, *itertools.accumulate(len(line) for line in source.splitlines(keepends=True))]
    shapes = _shapes(tree)
    edits = [edit for node in ast.walk(tree) for edit in _edits(node, source, starts, shapes)]
    reached = _within(tree, _files(tree))
    bound = {name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for name in _bound(node)}
    if taken := {node.attr for node, _ in reached} & bound:
        raise AssertionError(f"{taken} of another file is a variable here: give one another name")
    edits += [(*_place(node, starts), node.attr.encode()) for node, _ in reached]
    edits += [(*_place(node, starts), name.encode()) for node, name in _torchs(tree)]
    conditions = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    edits += [_lines(node, starts) for node in conditions if _checks_others(node, fields)]
    done = len(source)
    for first, last, new in sorted(_outermost(edits), reverse=True):
        assert last <= done, "two edits of one place"
        source, done = source[:first] + new + source[last:], first
    lines = source.decode().splitlines()
    doubled = (a == b == "" and c[:1] == " " for a, b, c in zip(lines, lines[1:], [*lines[2:], ""]))
    return "\n".join(line for line, drop in zip(lines, [*doubled, False]) if not drop) + "\n"


def _torchs(tree: ast.Module) -> Iterator[tuple[ast.Name, str]]:
    """The names that mean one of `TORCHS`, with torch's."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    theirs = {name: there for node in imports for name, there in TORCHS.get(node.module or "", {}).items()}
    yield from ((node, theirs[node.id]) for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in theirs)


def _outermost(edits: list[Edit]) -> list[Edit]:
    """Without those that lie within another."""
    return [(a, b, new) for a, b, new in edits if not any((c, d) != (a, b) and c <= a and b <= d for c, d, _ in edits)]


def _shapes(tree: ast.Module) -> dict[str, str]:
    """Of the names for annotations, those imported of our files too."""
    assigned = [(name, node.value) for node in tree.body if isinstance(node, ast.Assign) for name in _defined(node)]
    found = {name: shape for name, value in assigned if (shape := _shape(value, {}))}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and _path(node.module).is_file():
            other = _shapes(ast.parse(_path(node.module).read_text(encoding="utf-8")))
            found |= {each.asname or each.name: other[each.name] for each in node.names if each.name in other}
    for file, dotted in _files(tree).items():
        other = _shapes(ast.parse(_path(dotted).read_text(encoding="utf-8")))
        found |= {f"{file}.{name}": shape for name, shape in other.items()}
    return found


def _checks_others(node: ast.If, fields: frozenset[str]) -> bool:
    """`if field.name == "x"`, where no field is called x."""
    compared = [each for each in ast.walk(node.test) if isinstance(each, ast.Compare)]
    names = [each.comparators[0] for each in compared if ast.unparse(each.left) == "field.name"]
    return any(isinstance(name, ast.Constant) and name.value not in fields for name in names)


def _lines(node: ast.stmt, starts: list[int]) -> Edit:
    return starts[node.lineno - 1], starts[node.end_lineno or 0], b""


def _edits(node: ast.AST, source: bytes, starts: list[int], named: dict[str, str]) -> Iterator[Edit]:
    if isinstance(node, ast.FunctionDef):
        yield _signature(node, source, starts, named)
    elif isinstance(node, ast.ClassDef):
        kept = _keeps_fields(node)
        is_model = any(_is(base, MIXIN) for base in node.bases)
        for each in node.body:
            if isinstance(each, ast.AnnAssign):
                yield from _tensors(each.annotation, starts, named) if kept else [_bare(each, starts)]
            elif is_model and isinstance(each, ast.Assign) and {"config_class", "presets"} & {*_defined(each)}:
                yield _lines(each, starts)
        if is_model:
            yield from ((*_place(base, starts), b"nn.Module") for base in node.bases if _is(base, MIXIN))
            calls = (each for each in ast.walk(node) if isinstance(each, ast.Call) and each.args)
            for call in (each for each in calls if ast.unparse(each.func) == "super().__init__"):
                given = ast.unparse(call.args[0])
                new = f"super().__init__()\n{' ' * call.col_offset}self.config = {given}"
                yield _place(call, starts)[0], _place(call, starts)[1], new.encode()
    elif isinstance(node, ast.Module):
        yield from (_bare(each, starts) for each in node.body if isinstance(each, ast.AnnAssign))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
        yield _bare(node, starts)


def _place(node: ast.expr | ast.stmt | ast.arg, starts: list[int]) -> tuple[int, int]:
    return starts[node.lineno - 1] + node.col_offset, starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)


def _bare(node: ast.AnnAssign, starts: list[int]) -> Edit:
    """Its annotation goes, and where there is no value the whole line."""
    if node.value is None:
        return _lines(node, starts)
    return _place(node.target, starts)[1], _place(node.annotation, starts)[1], b""


def _tensors(annotation: ast.expr, starts: list[int], named: dict[str, str]) -> Iterator[Edit]:
    """Of a field that stays, the shape goes: Tensor for Float[Tensor, "b n"]."""
    for each in ast.walk(annotation):
        if isinstance(each, ast.Name | ast.Subscript) and _shape(each, named):
            yield *_place(each, starts), b"Tensor"


def _signature(node: ast.FunctionDef, source: bytes, starts: list[int], named: dict[str, str]) -> Edit:
    """On one line where it fits, then the shapes as a comment where they fit too."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [each for each in (arguments.vararg, arguments.kwarg) if each]
    shapes = [f"{each.arg} {shape}" for each in every if (shape := _shape(each.annotation, named))]
    result = _shape(node.returns, named)
    written = [*every, *arguments.defaults, *(each for each in arguments.kw_defaults if each), node.returns]
    begin = _place(node, starts)[0]
    end = source.index(b":", max([begin, *(_place(each, starts)[1] for each in written if each)])) + 1
    for each in every:
        each.annotation = None
    line = f"def {node.name}({ast.unparse(arguments)}):"
    line = re.sub(r"'([^'\"\\]*)'", r'"\1"', line)  # the quotes that ruff wants
    said = ", ".join(shapes) + (f" -> {result}" if result else "")
    room = WIDTH - node.col_offset
    if len(line) > room:
        inside = " " * (node.col_offset + 4)
        line = line.replace("(", f"(\n{inside}", 1).removesuffix("):") + f"\n{' ' * node.col_offset}):"
    elif said and len(line) + len(said) + 4 <= room:
        line += f"  # {said.strip()}"
    return begin, end, line.encode()


def _shape(annotation: ast.expr | None, named: dict[str, str]) -> str:
    """(b, t, d) of Float[Tensor, "b t d"], or of a name for that; nothing where the annotation is of something else."""
    for each in ast.walk(annotation) if annotation else ():
        if isinstance(each, ast.Name | ast.Attribute) and ast.unparse(each) in named:
            return named[ast.unparse(each)]
        if isinstance(each, ast.Subscript) and ast.unparse(each.value) in SHAPED and isinstance(each.slice, ast.Tuple):
            return f"({', '.join(ast.literal_eval(each.slice.elts[1]).split())})"
    return ""


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
