"""The rules that keep a page a page, and the promises the README makes."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "scratchformers"
PAGES = sorted(path for path in (SOURCE / "models").glob("*.py") if path.name != "__init__.py")
LESSONS = sorted((ROOT / "lessons").glob("*.py"))


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_the_bricks_are_short_and_name_no_model():
    assert len(lines(SOURCE / "nn.py")) <= 150
    text = (SOURCE / "nn.py").read_text(encoding="utf-8").lower()
    for name in ("gpt", "bert", "vit", "mae", "clip", "bart", "marian"):
        assert not re.search(rf"\b{name}", text), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_model_is_a_page(page):
    table = next(i for i, line in enumerate(lines(page)) if line.startswith("ROWS"))
    assert table <= 120
    assert len(lines(page)) <= 230


def test_attention_takes_few_parameters():
    from scratchformers.nn import Attention

    assert len(inspect.signature(Attention.__init__).parameters) <= 6


def branches(function):
    kinds = (ast.If, ast.While, ast.Try, ast.IfExp)
    return sum(isinstance(node, kinds) for node in ast.walk(function))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_function_branches_much(path):
    limit = 5 if path.name == "nn.py" or path.parent.name == "models" else 10
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert branches(node) <= limit, f"{node.name} has {branches(node)} branches"


def test_the_version_is_the_same_wherever_it_stands():
    import scratchformers as sf

    stands = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff")}
    found = [re.search(r"^version\b\W*([\d.]+)", text, re.MULTILINE).group(1) for text in stands.values()]
    assert found == [sf.__version__] * 2


def test_there_is_no_utils():
    assert not [*SOURCE.rglob("utils*")]


def opens_text(call):
    """Whether this call opens a file as text: `os.open` and binary modes do not."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    binary = any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "b" in a.value for a in call.args)
    others = ("os", "Image", "archive", "gzip")  # which open other things, or always bytes
    return name in ("read_text", "write_text") or (name == "open" and owner not in others and not binary)


def test_every_file_is_opened_as_utf8():
    """What Windows would otherwise read as cp1252."""
    for path in [*SOURCE.rglob("*.py"), *LESSONS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and opens_text(node):
                assert "encoding" in {keyword.arg for keyword in node.keywords}, f"{path.name}:{node.lineno}"


def test_public_names_are_there_and_lazy():
    import scratchformers as sf

    assert set(sf.__all__) <= set(dir(sf))
    for name in sf.__all__:
        assert getattr(sf, name).__module__.startswith("scratchformers.")
    with pytest.raises(AttributeError, match="no attribute 'gpt5'"):
        _ = sf.gpt5
    assert callable(sf.generate), "the function, although a file has its name"


@pytest.mark.unhooked
def test_importing_the_package_loads_nothing():
    code = "import scratchformers, sys; assert 'torch' not in sys.modules"
    code += "\nimport scratchformers.tasks\nassert callable(scratchformers.generate)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_absolute_path_and_no_tool_of_ours_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [ROOT / name for name in listed.stdout.splitlines()] or list(SOURCE.rglob("*.py"))
    for path in files:
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yml") or path.name == "Makefile":
            assert not re.search(r"(?<![\w.])/(?:work|root|home)/", path.read_text(encoding="utf-8")), path


# --- lessons


def cells(path):
    """The code cells of a percent-format lesson."""
    parts = re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [part.partition("\n")[2] for part in parts if not part.startswith(" [markdown]")]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_every_cell_of_a_lesson_ends_in_something_checked_or_seen(lesson):
    for cell in cells(lesson):
        end = ast.parse(cell).body[-1]
        seen = ast.unparse(end)
        assert isinstance(end, ast.Assert) or re.match(
            r"print\(|plt\.(show|close)\(|(for|with) [\s\S]*(assert|print)", seen
        ), seen


@pytest.mark.unhooked
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_a_lesson_runs_from_beginning_to_end(lesson, tmp_path):
    done = subprocess.run(
        [sys.executable, str(lesson)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={"MPLBACKEND": "Agg", "PATH": "", "HOME": str(tmp_path), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout) > 500


# --- README


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_commands_of_the_readme_exist(capsys):
    from scratchformers.cli import main

    commands = set(re.findall(r"(?:^|`)scratchformers (\w+)", README, re.MULTILINE))
    assert {"train", "complete"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command
        capsys.readouterr()


def test_the_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z]+)\b", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_links_of_the_readme_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "my-gpt2" / "model.safetensors").is_file()


@pytest.mark.unhooked
def test_loading_does_not_wait_for_torchs_compiler(published):
    """To draw a number on the meta device, torch 2.13 imports it: a second, for values that are thrown away."""
    code = f"import sys, scratchformers as sf; sf.load({str(published[1])!r}); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
