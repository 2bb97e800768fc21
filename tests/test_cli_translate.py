"""`translate` as a person meets it: a text, a file to the screen, a file into a file, wherever that is interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from test_cli import refused, run
from test_translator import LONG, TEXTS, marian  # noqa: F401 (a fixture)

import scratchformers as sf
from scratchformers import answers
from scratchformers.answers import LineByLine
from scratchformers.cli import main
from scratchformers.tasks import translation

LINES = [f"line {i} of it" for i in range(20)]


@pytest.fixture
def folder(marian):  # noqa: F811
    return marian[2]


@pytest.fixture
def ours(folder):
    return sf.Translator.from_pretrained(folder)


def job(tmp_path, lines=LINES, *, block=3, settings=None):
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return LineByLine(tmp_path / "lines.txt", tmp_path / "out.txt", settings or {"seed": 1}, block=block)


def upper(calls):
    def answer(first, lines):
        calls.append((first, len(lines)))
        return [f"{first + i} {line.upper()}" for i, line in enumerate(lines)]

    return answer


# --- a file made of another, line by line


def test_line_k_is_made_of_line_k(tmp_path):
    calls, lines = [], ["", *LINES[:6], "", "é\x85 \u2028 b"]
    made = job(tmp_path, lines, block=4)
    assert made.lines == 9
    assert list(made.run(upper(calls))) == [4, 8, 9]
    assert calls == [(0, 4), (4, 4), (8, 1)]
    found = (tmp_path / "out.txt").read_bytes().decode().split("\n")[:-1]
    assert found == [f"{i} {line.upper()}" for i, line in enumerate(lines)]


def test_a_break_within_an_answer_makes_no_line(tmp_path):
    list(job(tmp_path, ["a", "b"]).run(lambda first, lines: ["x\r\ny\nz", "\ud800"]))
    assert (tmp_path / "out.txt").read_bytes() == b"x y z\n?\n"


def test_cut_anywhere_it_ends_up_the_same(tmp_path):
    """Every byte at which a process can be stopped while it writes; whole blocks are not made again."""
    list(job(tmp_path).run(upper([])))
    path = tmp_path / "out.txt"
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 7), len(whole) - 1, len(whole)]:
        path.write_bytes(whole[:cut])
        calls, again = [], job(tmp_path)
        done = whole[:cut].count(b"\n")
        assert again.done == (20 if done == 20 else done // 3 * 3)
        list(again.run(upper(calls)))
        assert path.read_bytes() == whole
        assert sum(count for _, count in calls) == 20 - again.done or again.done == 20
        assert calls[:1] == ([] if done == 20 else [(done // 3 * 3, min(3, 20 - done // 3 * 3))])


def test_memory_holds_one_block(tmp_path, monkeypatch):
    """However long the file is: what was read beyond what is written is at most a block."""
    made, read, own = job(tmp_path, LINES * 50), [], answers.read_lines

    def counted(path, **given):
        for line in own(path, **given):
            read.append(line)
            yield line

    monkeypatch.setattr(answers, "read_lines", counted)
    for done in made.run(upper([])):
        assert len(read) == done


def test_a_file_of_something_else_is_left_alone(tmp_path):
    out, beside = tmp_path / "out.txt", tmp_path / "out.txt.json"
    out.write_text("my diary\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"out.txt exists already, and is not said to be made here: choose another"):
        job(tmp_path)
    assert out.read_text() == "my diary\n"
    out.unlink()
    beside.write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"out.txt.json is in the way"):
        job(tmp_path)
    assert beside.read_text() == '{"mine": 1}'
    assert not out.exists()
    beside.unlink()
    list(job(tmp_path).run(upper([])))
    whole = out.read_bytes()
    with pytest.raises(ValueError, match=r"out.txt is of other lines than those of .*lines.txt: choose another file"):
        job(tmp_path, [*LINES[:19], "another"])
    for other in ({"settings": {"seed": 2}}, {"block": 4}):
        with pytest.raises(ValueError, match="was made with another model or other settings"):
            job(tmp_path, **other)
    assert out.read_bytes() == whole
    out.write_bytes(whole + b"more\n")
    with pytest.raises(ValueError, match="has more lines than"):
        job(tmp_path)
    assert out.read_bytes() == whole + b"more\n"
    out.unlink()
    assert job(tmp_path, ["other"]).done == 0, "nothing is left of it"


def test_what_cannot_be_written_or_read_is_said(tmp_path):
    with pytest.raises(OSError, match="cannot be written"):
        LineByLine(_lines(tmp_path, "a\n"), tmp_path / "lines.txt" / "out", {}, block=2)
    with pytest.raises(ValueError, match="holds no texts"):
        LineByLine(_lines(tmp_path, "\n\n"), tmp_path / "out", {}, block=2)
    with pytest.raises(ValueError, match="is not UTF-8"):
        LineByLine(_lines(tmp_path, b"a\n\xff\n"), tmp_path / "out", {}, block=2)
    assert not (tmp_path / "out").exists()


def _lines(tmp_path, content):
    path = tmp_path / "lines.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- the command


def test_a_text_is_translated(capsys, folder, ours):
    text, model = TEXTS[9], ("--model", folder)
    assert run(capsys, "translate", text, *model) == (0, ours(text).text + "\n", "")
    code, out, _ = run(capsys, "translate", text, *model, "--json", "--beams", 1, "--max-new-tokens", 5)
    found = ours(text, beams=1, max_new_tokens=5)
    assert (code, json.loads(out)) == (0, {"text": text, "translation": found.text, "score": found.score})
    code, out, _ = run(capsys, "translate", text, *model, "--nbest", 3, "--length-penalty", 2)
    best = ours(text, nbest=3, length_penalty=2.0)
    assert out.split("\n") == [text, *(f"  {each.score:9.4f}  {each.text}" for each in best), ""]
    code, out, _ = run(capsys, "translate", text, *model, "--nbest", 2, "--json")
    best = [vars(each) for each in ours(text, nbest=2)]
    assert json.loads(out) == {"text": text, "translations": best}


def test_languages_and_the_task_reach_the_model(capsys, folder, ours, tmp_path):
    told = ours(TEXTS[2], target_language="fra").text
    assert run(capsys, "translate", TEXTS[2], "--model", folder, "--target-language", "fra")[1] == told + "\n"
    assert "none, so leave it out" in refused(capsys, "translate", "a", "--model", folder, "--source-language", "fra")
    (tmp_path / "pairs.tsv").write_text(f"source\ttarget\n{TEXTS[2]}\t{told}\n", encoding="utf-8")
    measure = ("eval", "--data", tmp_path / "pairs.tsv", "--model", folder)
    exact = [json.loads(run(capsys, *measure, "--json", *to)[1])["exact"] for to in ((), ("--target-language", "fra"))]
    assert exact == [0, 1]
    assert "none, so leave it out" in refused(capsys, *measure, "--source-language", "fra")
    assert "leave it out for text" in refused(capsys, *measure, "--task", "text", "--target-language", "fra")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shorter = shutil.copytree(folder, tmp_path / "shorter")
    said = {**config, "task_specific_params": {"summarization": {"max_length": 5}}}
    (shorter / "config.json").write_text(json.dumps(said), encoding="utf-8")
    found = [run(capsys, "translate", TEXTS[2], "--model", shorter, *task)[1] for task in ((), ("--task", "summarise"))]
    assert found == [ours(TEXTS[2]).text + "\n", ours(TEXTS[2], max_new_tokens=4).text + "\n"]
    assert found[0] != found[1]


def written(tmp_path, lines):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


MANY = ["", *TEXTS, " ", *TEXTS[3:20]]


def test_a_file_is_translated_line_by_line(capsys, folder, ours, tmp_path, monkeypatch):
    """Into a file, or to the screen; blocks or batches change nothing, nor does a run that was cut off."""
    monkeypatch.setattr(translation, "BLOCK", 16)
    expected = [each.text for each in ours(MANY, beams=2)]
    lines, out = written(tmp_path, MANY), tmp_path / "a folder" / "out.txt"
    command = ("translate", "--model", folder, "--beams", 2)
    code, said, error = run(capsys, *command, "--file", lines, "--out", out)
    assert (code, said) == (0, f"{len(MANY)} lines translated in {out}.\n")
    assert error.count("\n") == 1
    assert "cannot spell: are they the language?" in error
    assert out.read_text(encoding="utf-8").split("\n") == [*expected, ""]
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(expected[40].encode())])
    code, said, error = run(capsys, *command, lines, "--out", out)
    assert (code, out.read_bytes()) == (0, whole)
    assert f"{out} holds 32 of {len(MANY)} lines: going on after them." in error
    assert (
        f"{out} holds {len(MANY)} of {len(MANY)} lines: that is all." in run(capsys, *command, lines, "--out", out)[2]
    )
    assert "was made with another model or other settings" in _last(capsys, *command[:-1], 3, lines, "--out", out)
    for given in ((lines,), ("--file", lines)):
        code, said, _ = run(capsys, *command, *given)
        assert (code, said.split("\n")) == (0, [*expected, ""])
    lines.write_text("other\n", encoding="utf-8")
    assert "is of other lines than those of" in refused(capsys, *command, lines, "--out", out)


def _last(capsys, *arguments):
    code, out, error = run(capsys, *arguments)
    assert (code, out) == (2, "")
    return error


def test_a_file_of_json_lines_may_hold_several_translations(capsys, folder, ours, tmp_path):
    lines, out, texts = written(tmp_path, TEXTS[:5]), tmp_path / "out.jsonl", TEXTS[:5]
    command = ("translate", "--model", folder, "--file", lines, "--out", out, "--nbest", 2)
    assert "for --nbest, have JSON lines" in refused(capsys, *command)
    assert run(capsys, *command, "--json")[0] == 0
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [each["text"] for each in found] == texts
    for each, best in zip(found, ours(texts, nbest=2)):
        assert [one["text"] for one in each["translations"]] == [one.text for one in best]
        assert [one["score"] for one in each["translations"]] == pytest.approx([one.score for one in best], abs=1e-5)


def test_line_i_draws_with_seed_plus_i(capsys, folder, ours, tmp_path, monkeypatch):
    monkeypatch.setattr(translation, "BLOCK", 3)
    lines, out = written(tmp_path, TEXTS[:8]), tmp_path / "out.txt"
    drawing = ("--temperature", 1.5, "--top-k", 30, "--seed", 7)
    assert run(capsys, "translate", lines, "--out", out, "--model", folder, *drawing)[0] == 0
    drawn = [ours(text, temperature=1.5, top_k=30, seed=7 + i).text for i, text in enumerate(TEXTS[:8])]
    assert out.read_text(encoding="utf-8").split("\n") == [*drawn, ""]
    said = run(capsys, "translate", TEXTS[0], "--model", folder, "--top-k", 3)[2]
    assert "needs a --temperature above 0" in said


def test_a_line_that_is_too_long_is_named_before_anything_is_translated(capsys, folder, ours, tmp_path):
    lines, out = written(tmp_path, [TEXTS[0], "", LONG, TEXTS[1]]), tmp_path / "out.txt"
    command = ("translate", lines, "--out", out, "--model", folder)
    error = refused(capsys, *command)
    assert f"{lines}, line 3: The text " in error
    assert "--too-long" in error
    assert not out.exists()
    code, _, error = run(capsys, *command, "--too-long", "truncate")
    assert code == 0
    assert "1 text was too long, and cut." in error
    split = tmp_path / "split.txt"
    assert run(capsys, "translate", lines, "--out", split, "--model", folder, "--too-long", "split")[0] == 0
    assert split.read_text(encoding="utf-8").split("\n")[2] == ours(LONG, too_long="split").text
    assert split.read_text(encoding="utf-8").split("\n")[3] == out.read_text(encoding="utf-8").split("\n")[3]


def test_what_cannot_be_is_said_in_a_sentence(capsys, folder, tmp_path, published):
    model, lines, out = ("--model", folder), written(tmp_path, ["a"]), tmp_path / "out.txt"
    odd = tmp_path / "odd.txt"
    odd.write_bytes(b"a\n\xff\n")
    for given, said in [
        ((), "There is nothing to translate: pass a text, or --file"),
        (("a", "--file", lines), "There is a text and a file to translate"),
        (("",), "The text is empty"),
        (("a", "--out", out), "--out is for the lines of a file"),
        (("missing.txt",), "missing.txt does not exist"),
        (("--file", tmp_path / "missing"), "There is no file"),
        (("--file", tmp_path), "There is no file"),
        ((lines, "--out", lines), "holds the texts: choose another file"),
        ((lines, "--out", tmp_path), "no regular file"),
        ((odd,), "is not UTF-8"),
        (("猫は犬です",), "the vocabulary cannot spell"),
        (("a", "--beams", 100000), "beams is 100000"),
        (("a", "--beams", 0), "beams is 0"),
        (("a", "--max-new-tokens", 0), "max_new_tokens is 0: expected at least 1"),
        (("a", "--max-new-tokens", 99), "max_new_tokens is 99: expected at most 60"),
        (("a", "--batch", 0), "batch is 0"),
        (("a", "--device", "toaster"), "no device 'toaster'"),
    ]:
        assert said in refused(capsys, "translate", *given, *model), given
    error = refused(capsys, "translate", "a", "--model", published[1])
    assert f"{published[1]} holds a GPT2, which does not translate: expected an encoder-decoder" in error
    assert "EncoderDecoder writes from a source: use `translate`" in refused(capsys, "complete", "a", *model)
    assert not out.exists()


def test_settings_are_checked_before_a_model_is_fetched(capsys, tmp_path):
    assert "beams is 0" in refused(capsys, "translate", "a", "--model", tmp_path / "nowhere", "--beams", 0)


def test_it_is_interrupted_politely(capsys, folder, tmp_path, monkeypatch):
    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(sf.Translator, "_translate", stopped)
    lines, out = written(tmp_path, ["a"]), tmp_path / "out.txt"
    assert main(["translate", str(lines), "--out", str(out), "--model", str(folder)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.unhooked
def test_a_killed_run_goes_on_to_the_same_file(folder, tmp_path):
    lines, out = written(tmp_path, TEXTS * 60), tmp_path / "out.txt"
    command = [sys.executable, "-m", "scratchformers", "translate", str(lines), "--out", str(out)]
    command += ["--model", str(folder), "--beams", "1"]
    how = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "timeout": 120}
    subprocess.run(command, check=True, capture_output=True, **how)
    whole = out.read_bytes()
    out.unlink()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=how["env"])
    while not (out.is_file() and out.stat().st_size > len(whole) // 10):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    begun = out.read_bytes()
    assert whole.startswith(begun)
    assert 0 < len(begun) < len(whole)
    done = subprocess.run(command, check=True, capture_output=True, **how)
    assert b"going on after them" in done.stderr
    assert out.read_bytes() == whole
