"""A file of prompts answered line by line: the same file in the end, wherever it was interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import folder, refused, run  # noqa: F401 (folder is a fixture)

from scratchformers.answers import Answers, read_prompts

PROMPTS = [f"{i} times {j} is" for i in range(5) for j in range(4)]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def answers(tmp_path, prompts=PROMPTS, *, batch=3, settings=None):
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return Answers(source, tmp_path / "answers.jsonl", settings or {"seed": 1}, batch=batch)


def echo(calls):
    def answer(first, prompts):
        calls.append((first, len(prompts)))
        return [{"text": f"{first + i}:{prompt}"} for i, prompt in enumerate(prompts)]

    return answer


def test_answers_stand_in_the_order_of_the_prompts(tmp_path):
    calls = []
    assert list(answers(tmp_path).run(echo(calls))) == [3, 6, 9, 12, 15, 18, 20]
    assert calls == [(0, 3), (3, 3), (6, 3), (9, 3), (12, 3), (15, 3), (18, 2)]
    found = lines(tmp_path / "answers.jsonl")
    assert [record["prompt"] for record in found] == PROMPTS
    assert [record["text"] for record in found] == [f"{i}:{prompt}" for i, prompt in enumerate(PROMPTS)]


def test_cut_anywhere_it_ends_up_the_same(tmp_path):
    """Every byte at which a process can be stopped while it writes: the batches, and so the rounding, are the same."""
    list(answers(tmp_path).run(echo([])))
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 37), len(whole) - 1, len(whole)]:
        path.write_bytes(whole[:cut])
        calls = []
        list(answers(tmp_path).run(echo(calls)))
        assert path.read_bytes() == whole
        assert all(first % 3 == 0 for first, _ in calls)
        done = whole[:cut].count(b"\n")
        assert sum(count for _, count in calls) == (0 if done == 20 else 20 - done // 3 * 3)


def test_prompts_added_later_are_answered_too(tmp_path):
    list(answers(tmp_path, PROMPTS[:10]).run(echo([])))
    calls = []
    list(answers(tmp_path, PROMPTS).run(echo(calls)))
    assert calls[0] == (9, 3), "the last batch was not whole"
    assert [record["prompt"] for record in lines(tmp_path / "answers.jsonl")] == PROMPTS


def test_memory_holds_one_batch(tmp_path):
    """A generator that is read ahead would have been asked for more than a batch."""
    read = []

    def source(path):
        for prompt in PROMPTS:
            read.append(prompt)
            yield prompt

    job = answers(tmp_path)
    import scratchformers.answers as module

    original, module.read_prompts = module.read_prompts, source
    try:
        counts = job.run(echo([]))
        next(counts)
        assert len(read) == 3
    finally:
        module.read_prompts = original


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "0 times 0 is", "text": "x", "settings": "abc"}\n', "line 1 was made with another model or other"),
        ('{"prompt": "other", "text": "x", "settings": "abc"}\n', "line 1 answers another prompt than line 1"),
        ('{"a": 1}\n', "line 1 is no answer of this program"),
        ("[1]\n", "line 1 is no answer of this program"),
        ("3\n", "line 1 is no answer of this program"),
    ],
)
def test_a_file_of_other_answers_is_left_alone(tmp_path, content, said):
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        answers(tmp_path)
    assert path.read_text() == content


def test_what_is_no_answers_file_at_all_is_not_overwritten(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"my diary\nof this year\n")
    with pytest.raises(ValueError, match="line 1 is no answer of this program"):
        answers(tmp_path)
    assert path.read_bytes() == b"my diary\nof this year\n"


def test_other_settings_are_not_mixed_in(tmp_path):
    list(answers(tmp_path).run(echo([])))
    for other in ({"settings": {"seed": 2}}, {"batch": 4}):
        with pytest.raises(ValueError, match="other settings: choose another file, or delete it"):
            answers(tmp_path, **other)


def test_prompts_as_json_lines_may_hold_line_breaks(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a\\nb\\u2028c", "id": 7}\n{"prompt": "\\ud800"}\n', encoding="utf-8")
    assert list(read_prompts(path)) == ["a\nb\u2028c", "\ud800"]
    job = Answers(path, tmp_path / "answers.jsonl", {}, batch=2)
    list(job.run(lambda first, prompts: [{"text": "é"}, {"error": "no"}]))
    assert [record["prompt"] for record in lines(tmp_path / "answers.jsonl")] == ["a\nb\u2028c", "\ud800"]
    assert job.failed == 1
    assert Answers(path, tmp_path / "answers.jsonl", {}, batch=2).failed == 1


def test_windows_lines_empty_lines_and_a_byte_order_mark_are_no_text(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\ntwo\r\n\r\nlast".encode())
    assert list(read_prompts(path)) == ["one", "two", "last"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', 'line 2 has no text called "prompt"'),
        ("p.jsonl", "not json\n", "line 1 is not valid JSON"),
        ("p.txt", "", "holds no prompts"),
        ("p.txt", b"a\n\xff\n", "is not UTF-8"),
    ],
)
def test_prompts_that_cannot_be_read_are_said(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said):
        list(Answers(path, tmp_path / "answers.jsonl", {}, batch=1).run(echo([])))


def test_prompts_that_can_be_read_but_once_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read twice"):
        Answers(Path(os.devnull), tmp_path / "answers.jsonl", {}, batch=1)


# --- the command


def complete_file(folder, tmp_path, *more):  # noqa: F811
    return (
        "complete",
        "--file",
        tmp_path / "prompts.txt",
        "--out",
        tmp_path / "answers.jsonl",
        "--model",
        folder,
        *more,
    )


def test_complete_answers_a_file(capsys, folder, tmp_path):  # noqa: F811
    import scratchformers as sf

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    arguments = complete_file(folder, tmp_path, "--temperature", 1.0, "--seed", 5, "--batch", 4, "--max-new-tokens", 6)
    code, out, error = run(capsys, *arguments)
    assert (code, error) == (0, "")
    assert f"20 prompts answered in {tmp_path / 'answers.jsonl'}" in out
    found = lines(tmp_path / "answers.jsonl")
    completer = sf.Completer.from_pretrained(folder)
    for i, record in enumerate(found):
        alone = completer(PROMPTS[i], seed=5 + i, temperature=1.0, max_new_tokens=6)
        assert record["prompt"] == PROMPTS[i]
        assert (record["text"], record["ids"], record["reason"]) == (alone.text, alone.ids, alone.reason)
    before = (tmp_path / "answers.jsonl").read_bytes()
    assert run(capsys, *arguments)[0] == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    refused_now = refused(capsys, *complete_file(folder, tmp_path, "--temperature", 0.5))
    assert "was made with another model or other settings" in refused_now


def test_a_prompt_that_cannot_be_continued_is_an_error_in_its_line(capsys, folder, tmp_path):  # noqa: F811
    (tmp_path / "prompts.txt").write_text("3 times\n" + "3 " * 90 + "\n\nunknown: ß\n4 times\n", encoding="utf-8")
    code, _, error = run(capsys, *complete_file(folder, tmp_path))
    assert code == 2
    assert "2 of 4 prompts could not be continued" in error
    found = lines(tmp_path / "answers.jsonl")
    assert ["text" in record for record in found] == [True, False, False, True]
    assert "shorten the prompt" in found[1]["error"]
    assert "no id for" in found[2]["error"]


def test_files_that_do_not_fit_are_refused(capsys, folder, tmp_path):  # noqa: F811
    prompts, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    model = ("--model", folder)
    assert "cannot be read" in refused(capsys, "complete", "--file", prompts, "--out", out, *model)
    prompts.write_text("3\n", encoding="utf-8")
    assert "go together" in refused(capsys, "complete", "--file", prompts, *model)
    assert "go together" in refused(capsys, "complete", "3", "--out", out, *model)
    assert "a text and a file" in refused(capsys, "complete", "3", "--file", prompts, "--out", out, *model)
    assert "pass a text, or --file" in refused(capsys, "complete", *model)
    assert "holds the prompts" in refused(capsys, "complete", "--file", prompts, "--out", prompts, *model)
    assert "cannot be written" in refused(capsys, "complete", "--file", prompts, "--out", tmp_path, *model)
    assert "no regular file" in refused(capsys, "complete", "--file", prompts, "--out", os.devnull, *model)
    assert "cannot be read: is a directory" in refused(capsys, "complete", "--file", tmp_path, "--out", out, *model)
    assert "cannot be written" in refused(capsys, "complete", "--file", prompts, "--out", prompts / "x", *model)
    assert "batch is 0" in refused(capsys, *complete_file(folder, tmp_path, "--batch", 0))


@pytest.mark.unhooked
def test_a_killed_run_goes_on_to_the_same_file(folder, tmp_path):  # noqa: F811
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS * 20), encoding="utf-8")
    command = [sys.executable, "-m", "scratchformers", *map(str, complete_file(folder, tmp_path))]
    command += ["--temperature", "1", "--seed", "1", "--batch", "3"]
    out, environment = tmp_path / "answers.jsonl", {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
    whole = out.read_bytes()
    out.unlink()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while not (out.is_file() and out.stat().st_size > len(whole) // 3):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert 0 < out.stat().st_size < len(whole)
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
    assert out.read_bytes() == whole
