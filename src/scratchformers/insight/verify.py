"""Is this checkpoint what it should be? Ours and the reference on the same inputs, layer by layer.

The reference is the installed transformers (of timm's files, timm; of open_clip's and OpenAI's, open_clip); or what it
answered once, frozen in a file; or, where there is neither, what it answered for a small model that comes with us,
which proves the code and not the checkpoint.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scratchformers import ragged
from scratchformers.checkpoints import files
from scratchformers.checkpoints.pretrained import Config, fingerprint, read_config, spelt_out
from scratchformers.insight.inputs import Found, Inputs
from scratchformers.insight.references import REFERENCES, Call, Case, Reference
from scratchformers.models import load

# Of the largest value at a place, or of 1 if that is more. Rounding alone came to 6e-15 and 4e-6 in GPT-2 124M
# (benchmarks/results/verify.json); the slightest of the planted bugs, the wrong GELU, to 3e-4 of both in a small model.
# float64 decides, by a wide margin; float32, whose rounding grows with depth, shows only what is wrong in it alone.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
GIVEN = ".input"  # ends the name of a place that is what a stack of modules is given, as `record` names it
CALLED = "()"  # ends their name of a place at which stands what the call says besides its output
PACKAGES = {"open_clip": "open_clip_torch"}  # that are named otherwise than what is imported of them
MOST = 512  # columns of an output that are frozen, spread over all
FORMAT = "scratchformers-verify-1"
SHIPPED, SMALL = Path(__file__).parent / "frozen", "a small model that comes with scratchformers"
States = dict[str, dict[str, Tensor]]  # of each case, what stood at each place


@dataclass(frozen=True)
class Place:
    """How far ours is from the reference at one place, in each precision. NaN where they cannot be compared."""

    ours: str
    theirs: str
    largest: dict[str, float]
    mean: dict[str, float]
    scale: float  # the largest value there
    passes: bool


@dataclass
class Report:
    source: str
    model: str
    against: str
    places: list[Place] = field(default_factory=list)
    agreement: dict[str, float] = field(default_factory=dict)  # share of places with the same most probable answer
    tokenizer: str | None = None  # of a model of texts, and
    preprocessing: str | None = None  # of pictures: whether what goes in is made alike
    problems: list[str] = field(default_factory=list)  # a sentence each
    published: str | None = None  # the preset whose published weights these are, to the last bit
    caveat: str = ""  # what this comparison cannot show
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def diverges(self) -> str | None:
        """The first place past tolerance, in order of execution."""
        return next((place.ours for place in self.places if not place.passes), None)

    @property
    def tolerance(self) -> str:
        bounds = " and ".join(f"{value:.0e} in {_name(dtype)}" for dtype, value in TOLERANCES.items())
        return f"largest differences are within {bounds}, times the largest value there if that is above 1"

    @property
    def passes(self) -> bool:
        return self.diverges is None and not self.problems

    def to_json(self) -> dict[str, Any]:
        said = dataclasses.asdict(self) | {"passes": self.passes, "diverges": self.diverges}
        said = {name: value for name, value in said.items() if value is not None or name in ("diverges", "published")}
        finite = lambda x: x if not isinstance(x, float) or math.isfinite(x) else None  # noqa: E731
        for place in said["places"]:
            for column in ("largest", "mean"):
                place[column] = {name: finite(value) for name, value in place[column].items()}
            place["scale"] = finite(place["scale"])
        return said | {"tolerances": {_name(dtype): value for dtype, value in TOLERANCES.items()}}


def verify(
    source: Path, *, name: str = "", against: Path | None = None, freeze: Path | None = None, seed: int = 0
) -> Report:
    """Compares the checkpoint in a folder. `freeze` is written: the inputs, what the reference answered, the config and
    what texts or pictures become; `against` is such a file. Raises ValueError or OSError where nothing can be
    compared."""
    model = load(source)
    reference = reference_of(model)
    if reference.configured and not read_config(source) and against is None:
        raise ValueError(
            f"{source} is no folder with a config.json, which the reference needs: give it one, or pass --against a "
            "file that was frozen of such a folder with the same weights."
        )
    installed, package = importlib.util.find_spec(reference.library) is not None, _package(reference.library)
    if freeze is not None and (against is not None or not installed):
        library = reference.library
        raise ValueError(f"--freeze writes what {library} answers: it needs `pip install {package}`, and no --against.")
    report = Report(name or str(source), type(model).__name__, "", versions={"torch": torch.__version__})
    _check_weights(report, model, files.find_weights(source))
    if against is not None:
        _against(report, source, model, read_frozen(against), str(against))
    elif installed:
        _beside(report, source, model, seed, freeze)
    else:
        _shipped(report, reference)
    return report


def reference_of(model: Any) -> Reference:
    """ValueError where there is none."""
    kind = type(model).__name__
    if kind not in REFERENCES:
        raise ValueError(f"{kind} has no reference to be verified against: expected one of {', '.join(REFERENCES)}.")
    found = REFERENCES[kind].others.get(model.layout, REFERENCES[kind])
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _check_weights(report: Report, model: Any, weights: Path) -> None:
    """All are numbers, also those that no input reaches; and published ones stand beside the config they came with."""
    if strange := [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]:
        report.problems.append(f"The checkpoint's weights are not all finite numbers: {', '.join(strange[:5])}.")
    found = cache(lambda: _sha256(weights))
    for name, (size, digest) in REFERENCES[report.model].published.items():
        if weights.stat().st_size == (size or weights.stat().st_size) and found() == digest:
            report.published = name
            if changed := _changed(model.presets[name], model.config, apart="dropout"):
                report.problems.append(f"The config is not the one these weights were published with: {changed}.")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed(then: Config, now: Config, apart: str = "") -> str:
    a, b = spelt_out(then), spelt_out(now)
    return "; ".join(f"{name} was {a[name]} and is {b[name]}" for name in a if a[name] != b[name] and name != apart)


# --- against what


def _beside(report: Report, source: Path, model: Any, seed: int, freeze: Path | None) -> None:
    """The library, on the same checkpoint, in both precisions."""
    reference, generator = reference_of(model), torch.Generator().manual_seed(seed)
    ours = {inputs.name: inputs.ours(source) for inputs in reference.inputs}
    texts: list[list[int]] = []
    for inputs in reference.inputs:
        found = ours[inputs.name]
        own, misfit = ([], None) if isinstance(found, str) else inputs.suits(found, model.config)
        texts, report.problems = texts + own, report.problems + ([misfit] if misfit else [])
    cases = reference.cases(model.config, generator, texts)
    expected: dict[torch.dtype, States] = {}
    names: dict[str, str] = {}
    with _imported(reference.library) as library:
        kind, told_of = reference.kind(model)
        report.against = f"{reference.library} {library.__version__}, {kind}"
        report.versions[reference.library] = library.__version__
        for dtype in TOLERANCES:
            theirs, told = LIBRARIES[reference.library][1](library, source, kind, told_of, dtype)
            if dtype == torch.float64:
                for what, listed in told.items():
                    if listed:
                        report.problems.append(f"{reference.library} reports {what}: {', '.join(sorted(listed))}.")
            names = {place: _path(theirs, path) for place, path in reference.places(model)}
            expected[dtype] = _states(theirs.eval(), names, cases, reference.theirs, "output", reference.real)
            del theirs
        answers = {
            inputs.fact: _their_inputs(report, reference, inputs, library, source, ours[inputs.name])
            for inputs in reference.inputs
        }
    _compare(report, source, reference, cases, expected, names)
    if report.published is None:
        words = ["config.json"] if reference.configured else ["file"]
        words += [inputs.word for inputs in reference.inputs if not isinstance(ours[inputs.name], str)]
        report.caveat = (
            f"Both read the same {' and the same '.join(words)}: whether somebody changed that, only --against a file "
            "that was frozen before can tell."
        )
    if freeze is not None:
        _freeze(freeze, report, model, source, answers, cases, expected[torch.float64])


def _their_inputs(
    report: Report, reference: Reference, inputs: Inputs, library: Any, source: Path, ours: Found | str
) -> Found | None:
    """Compares what goes in; returns what it is by the library, where that says it."""
    if isinstance(ours, str) or reference.library != "transformers":
        setattr(report, inputs.name, ours if isinstance(ours, str) else f"not compared with {reference.library}")
        return None
    try:
        theirs = inputs.theirs(library, source, ours)
    except Exception as error:  # bare Exception, among others
        said = str(error).partition("\n")[0]
        setattr(report, inputs.name, "not compared")
        report.problems.append(f"transformers cannot read the {inputs.word} ({said}), which ours can.")
        return None
    _compare_inputs(report, inputs, source, ours, theirs, "transformers")
    return theirs


def _compare_inputs(report: Report, inputs: Inputs, source: Path, ours: Found, theirs: Found, whose: str) -> None:
    said, problem = inputs.compare(ours, theirs, whose)
    setattr(report, inputs.name, said + inputs.note(source))
    report.problems += [problem] if problem else []


def _against(report: Report, source: Path, model: Any, frozen: "Frozen", named: str) -> None:
    """What a file says the reference answered, for this config, these weights, and what goes in."""
    report.against = f"{named}: {frozen.facts['reference']} on torch {frozen.facts['versions']['torch']}"
    published = frozen.facts["config"]
    said = frozen.facts.get("layout", published.get("model_type"))
    layout = next((each for each in model.layouts if each.model_type == said), None)
    reference = REFERENCES[report.model].others.get(said, REFERENCES[report.model])
    if layout is None or isinstance(reference, str):
        report.problems.append(f"The file is of a {said!r}, the checkpoint a {report.model}.")
        return
    fields = dataclasses.fields(model.config)  # a head that config.json counts classes for may be absent
    absent = {
        each.name: None for each in fields if each.default is not None and getattr(model.config, each.name) is None
    }
    # A file of OpenAI's has none, and its weights tell all.
    if published and (changed := _changed(dataclasses.replace(layout.read(published), **absent), model.config)):
        report.problems.append(f"The config is not the one that was frozen: {changed}.")
    if frozen.facts.get("weights") not in (None, fingerprint(model)):
        report.problems.append("The weights are not those that were frozen.")
    for inputs in reference.inputs:
        _frozen_inputs(report, inputs, source, frozen.facts.get(inputs.fact), named)
    expected = dict.fromkeys(TOLERANCES, frozen.states)
    names = {place: path.partition(" or ")[0] for place, path in reference.places(model)}
    _compare(report, source, reference, frozen.cases, expected, names)


def _frozen_inputs(report: Report, inputs: Inputs, source: Path, theirs: Found | None, named: str) -> None:
    ours = inputs.ours(source, theirs or [])
    if theirs is not None and not (isinstance(ours, str) and source.is_file()):  # a single file has nothing beside it
        _compare_inputs(report, inputs, source, {} if isinstance(ours, str) else ours, theirs, "the file")
    elif isinstance(ours, str) or named == SMALL:
        setattr(report, inputs.name, ours if isinstance(ours, str) else "not compared")
    else:
        setattr(report, inputs.name, "not compared, for the file was frozen without one")


def _shipped(report: Report, reference: Reference) -> None:
    """The small model that comes with us; of the checkpoint itself, that it was loaded strictly and is finite."""
    frozen = read_frozen(SHIPPED / f"{report.model}.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(frozen.facts["config"]), encoding="utf-8")
        save_file(frozen.weights, Path(folder, "model.safetensors"))
        _against(report, Path(folder), load(folder), frozen, SMALL)
    for inputs in reference.inputs:
        setattr(report, inputs.name, "not compared")
    report.caveat = (
        "This proves the code, not the checkpoint, of which every tensor found its place: for that, "
        f"`pip install {_package(reference.library)}`, or pass --against a file that --freeze wrote."
    )


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """transformers imports torchvision where it is installed; one built for another torch breaks it: hidden here."""
    had = sys.modules.get("torchvision")
    if had is None:
        sys.modules["torchvision"] = None  # pyrefly: ignore (that is how Python is told that a module is not there)
    try:
        yield
    finally:
        if had is None:
            del sys.modules["torchvision"]


@contextlib.contextmanager
def _transformers() -> Iterator[Any]:
    with _importable():
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield transformers


@contextlib.contextmanager
def _timm() -> Iterator[Any]:
    import timm

    yield timm


@contextlib.contextmanager
def _open_clip() -> Iterator[Any]:
    import open_clip

    yield open_clip


def _package(library: str) -> str:
    """What to install for it."""
    return PACKAGES.get(library, library)


Loaded = tuple[nn.Module, dict[str, Any]]  # the library's model, and the names of what did not fit, by what that is


def _load_transformers(library: Any, source: Path, kind: str, told_of: dict[str, Any], dtype: torch.dtype) -> Loaded:
    theirs, told = getattr(library, kind).from_pretrained(source, dtype=dtype, output_loading_info=True, **told_of)
    what = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return theirs, {name.replace("_", " "): [str(each) for each in told[name]] for name in what}


def _load_timm(library: Any, source: Path, kind: str, told_of: dict[str, Any], dtype: torch.dtype) -> Loaded:
    """By its own reading of config.json. What does not fit is its RuntimeError."""
    theirs = library.create_model(f"local-dir:{source}", **told_of).to(dtype)
    try:
        library.models.load_checkpoint(theirs, str(files.find_weights(source)))
    except RuntimeError as error:
        return theirs, {"the checkpoint": [" ".join(str(error).split())]}
    return theirs, {}


def _load_open_clip(library: Any, source: Path, kind: str, told_of: dict[str, Any], dtype: torch.dtype) -> Loaded:
    """By its own reading of open_clip_config.json, or, of a file of OpenAI's, of the shapes. Such a file's tensors are
    those that we read: open_clip would have torch.jit do it, which runs what is in it."""
    if not read_config(source):
        tensors = files.read_tensors(files.find_weights(source))
        theirs = library.model.build_model_from_openai_state_dict(dict(tensors), cast_dtype=None).to(dtype)
        theirs.load_state_dict(tensors, strict=False)  # again, for it has rounded some to half precision
        return theirs, {}
    try:
        return library.create_model(f"local-dir:{source}").to(dtype), {}
    except RuntimeError as error:
        theirs = library.create_model(f"local-dir:{source}", load_weights=False).to(dtype)
        return theirs, {"the checkpoint": [" ".join(str(error).split())]}


LIBRARIES = {
    "transformers": (_transformers, _load_transformers),
    "timm": (_timm, _load_timm),
    "open_clip": (_open_clip, _load_open_clip),
}


@contextlib.contextmanager
def _imported(name: str) -> Iterator[Any]:
    """The library. ValueError where it is broken."""
    with contextlib.ExitStack() as stack:
        try:
            library = stack.enter_context(LIBRARIES[name][0]())
        except (ImportError, RuntimeError) as error:  # torchvision, which timm and open_clip need, has raised either
            said = str(error).partition("\n")[0]
            raise ValueError(
                f"{name} is installed and cannot be imported ({said}): mend it, or pass --against a file."
            ) from None
        yield library


# --- the numbers


def _path(model: nn.Module, paths: str) -> str:
    """Of the names that a place has in the library's versions, this one's."""
    known = {name for name, _ in model.named_modules()}
    named = [path for path in paths.split(" or ") if _hooked(path) in known]
    return named[0] if named else paths


def _hooked(path: str) -> str:
    """The module to look at: for what a stack is given, its first."""
    return f"{path.removesuffix(GIVEN)}.0" if path.endswith(GIVEN) else path


def _states(
    model: nn.Module,
    paths: Mapping[str, str],
    cases: dict[str, Case],
    call: Call,
    last: str,
    real: Callable[[str], str],
) -> States:
    """What stands at the places (named as ours), at real tokens, and the result of the call, named `last`."""
    found: States = {}
    for name, case in cases.items():
        seen: dict[str, Tensor] = {}
        hooks = [_look(model, path, seen, at) for at, path in paths.items() if not path.endswith(CALLED)]
        try:
            with torch.no_grad():
                results = call(model, **case)
            seen |= results if isinstance(results, dict) else {last: results}
        finally:
            for hook in hooks:
                hook.remove()
        found[name] = {place: _real(value, case.get(real(place))) for place, value in seen.items()}
    return found


def _real(value: Tensor, keep: Tensor | None) -> Tensor:
    """What stands at real tokens; of what there is one of for each row, all."""
    return value if keep is None or value.ndim < 3 else value[keep]


def _look(model: nn.Module, path: str, seen: dict[str, Tensor], place: str) -> Any:
    module = model.get_submodule(_hooked(path))

    def before(_: nn.Module, given: Any) -> None:
        seen[place] = given[0]

    def after(_: nn.Module, __: Any, out: Any) -> None:
        seen[place] = out[0] if isinstance(out, tuple) else out

    if path.endswith(GIVEN):
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(after)


def _compare(
    report: Report,
    source: Path,
    reference: Reference,
    cases: dict[str, Case],
    expected: dict[torch.dtype, States],
    names: dict[str, str],
) -> None:
    """Fills in `places` and `agreement`: each way of ours in each precision. `names` are those of places by theirs."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    faults, answer = [], "output"
    for dtype, theirs in expected.items():
        model = load(source, dtype=dtype)
        places, results = [place for place, _ in reference.places(model)], next(iter(theirs.values()))
        answer = "logits" if reference.scores(model) else "output"
        # What the reference said besides, and is no way of ours: a loss.
        others = [name for name in results if name not in {*places, *reference.ours}]
        for way, call in reference.ours.items():
            within = places if way == "output" else []
            states = _try(report, model, within, cases, call, way, reference.real)
            for place in [*within, way, *(others if way == "output" else [])]:
                pairs = [
                    (state.get(place), theirs[case].get(place, theirs[case]["output"]))
                    for case, state in states.items()
                ]
                found.setdefault(place, {})[_name(dtype)] = _difference(pairs)
                faults += _faults(pairs, place, _name(dtype))
                if place == "output" and answer == "logits":
                    report.agreement[_name(dtype)] = _agreement(pairs)
        names = {**{name: name for name in results if name != "output"}, **names}
    for place, figures in found.items():
        scale = max(1.0, figures["float64"][2])
        finite = all(math.isfinite(value) for values in figures.values() for value in values)
        passes = finite and all(figures[_name(dtype)][0] <= bound * scale for dtype, bound in TOLERANCES.items())
        largest, mean = ({dtype: values[i] for dtype, values in figures.items()} for i in (0, 1))
        report.places.append(Place(place, names.get(place, answer), largest, mean, figures["float64"][2], passes))
    report.problems += faults[:1]  # what follows the first follows from it


def _try(
    report: Report,
    model: Any,
    within: list[str],
    cases: dict[str, Case],
    call: Call,
    way: str,
    real: Callable[[str], str],
) -> States:
    """What ours gives, or nothing and a sentence where it fails: a wrong model may, and a wrong config."""
    token = ragged.padded.set(bool(within))  # else blocks would see rows without their padding
    try:
        return _states(model, {path: path for path in within}, cases, call, way, real)
    except (ValueError, IndexError, RuntimeError) as error:
        sentence = f"The model fails ({way}): {error}"
        report.problems += [sentence] if sentence not in report.problems else []
        return {case: {} for case in cases}
    finally:
        ragged.padded.reset(token)


def _alike(pairs: list[tuple[Tensor | None, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The pairs, ours with as many columns as the file kept; none where one is missing or has another shape."""
    thinned = [(_thin(a) if a is not None and a.shape != b.shape else a, b) for a, b in pairs]
    alike = [(a, b) for a, b in thinned if a is not None and a.shape == b.shape]
    return alike if len(alike) == len(pairs) else []


def _difference(pairs: list[tuple[Tensor | None, Tensor]]) -> tuple[float, float, float]:
    """The largest and the mean difference, and the largest value, which of ids says nothing; NaN, which passes nothing,
    where there is none."""
    alike = _alike(pairs)
    if not alike:
        return math.nan, math.nan, math.nan
    apart = torch.cat([(a.double() - b.double()).abs().flatten() for a, b in alike])
    scale = max(float(b.abs().max()) if b.is_floating_point() else 1.0 for _, b in alike)
    return float(apart.max()), float(apart.mean()), scale


def _faults(pairs: list[tuple[Tensor | None, Tensor]], place: str, dtype: str) -> list[str]:
    """Why these cannot be compared by numbers, a sentence each."""
    found = []
    for a, b in pairs:
        shapes = a is not None and (_thin(a) if a.shape != b.shape else a).shape != b.shape
        strange = [whose for whose, x in (("ours", a), ("theirs", b)) if x is not None and not bool(x.isfinite().all())]
        if a is not None and shapes:
            found.append(f"At {place} ours has the shape {list(a.shape)} and theirs {list(b.shape)}.")
        if strange:
            found.append(f"At {place}, in {dtype}, {' and '.join(strange)} are not all finite numbers.")
    return found


def _agreement(pairs: list[tuple[Tensor | None, Tensor]]) -> float:
    same = [(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in _alike(pairs)]
    return float(torch.cat(same).double().mean()) if same else 0.0


def _thin(output: Tensor) -> Tensor:
    """At most MOST columns, spread evenly: what a file keeps of an output."""
    columns = output.shape[-1]
    return output if columns <= MOST else output[..., torch.linspace(0, columns - 1, MOST).long()]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- frozen outputs


@dataclass(frozen=True)
class Frozen:
    facts: dict[str, Any]
    cases: dict[str, Case]
    states: States
    weights: dict[str, Tensor]  # of a small model that the file brings along


def read_frozen(path: Path) -> Frozen:
    """Raises ValueError where the file is not one that `freeze` wrote."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises its own, and OSError for some
        raise ValueError(f"{path} is no safetensors file ({error}).") from None
    if metadata.get("format") != FORMAT or "facts" not in metadata:
        raise ValueError(f"{path} was not written by `scratchformers verify --freeze`.")
    cases: dict[str, Case] = {}
    states: States = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        where = {"inputs": cases, "reference": states}.get(part)
        if where is not None:
            case, _, key = rest.partition("/")
            where.setdefault(case, {})[key] = value
    weights = {name.removeprefix("weights/"): x for name, x in tensors.items() if name.startswith("weights/")}
    return Frozen(json.loads(metadata["facts"]), cases, states, weights)


def _freeze(path: Path, report: Report, model: Any, source: Path, inputs: Any, cases: dict, states: States) -> None:
    reference = reference_of(model)
    facts = {
        "reference": report.against,
        "versions": {name: version(_package(name)) for name in ("torch", reference.library)},
        "layout": model.layout,
        "config": read_config(source),
        "weights": fingerprint(model),
        **inputs,
    }
    tensors = {f"inputs/{case}/{key}": value.clone() for case, given in cases.items() for key, value in given.items()}
    for case, state in states.items():
        tensors |= {f"reference/{case}/{place}": _thin(value).contiguous().clone() for place, value in state.items()}
    write = partial(save_file, tensors, metadata={"format": FORMAT, "facts": json.dumps(facts)})
    files.write_together(path.absolute().parent, {path.name: write}, last=path.name)
