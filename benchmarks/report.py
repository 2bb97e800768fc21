"""What `benchmarks/bench.py` found, as the README's table and picture, and how far two runs of it agree.

(cd benchmarks/results; python ../report.py onednn-cpu.json --also {bert,vision,clip}-cpu.json \\
    --readme ../../README.md)
(cd benchmarks/results; python ../report.py onednn-cpu.json --model gpt2 --picture cpu.svg)
python benchmarks/report.py benchmarks/results/quick-1.json --agree benchmarks/results/quick-2.json --readme README.md
python benchmarks/report.py benchmarks/results/embed-cpu.json --readme README.md     # the sentence about embedding
python benchmarks/report.py benchmarks/results --readme README.md                    # trainings, and training itself
"""

import argparse
import json
import re
from pathlib import Path

TOLERANCE = 0.15  # how far a ratio may move from one run to the next


def table(results):
    """The rows as Markdown, and below them where they were measured."""
    lines = ["| | work | theirs / ours, best | median | MiB, ours | theirs |", "|---|---|---|---|---|---|"]
    for row in results["rows"]:
        memory = row.get("peak MiB", {"ours": "", "theirs": ""})
        cells = [f"{row['model']}, {row['row']}", row["what"], f"{row['best']:.2f}x", f"{row['median']:.2f}x"]
        lines.append("| " + " | ".join([*cells, str(memory["ours"]), str(memory["theirs"])]) + " |")
    of, versions = results["machine"], results["versions"]
    where = (
        f"{of['device']}, {of['threads']} threads; it reads {of['bandwidth GB/s']} GB/s from memory and multiplies "
        f"float32 matrices at {of['float32 GEMM GFLOP/s']} GFLOP/s. torch {versions['torch']}, transformers "
        f"{versions['transformers']}; {results['rounds']} rounds in turns, `{results['command']}`."
    )
    where += " Our linears multiplied by oneDNN." if results.get("linears") == "oneDNN" else ""
    return "\n".join([*lines, "", where])


def tables(runs):
    """Of each run a table: they may have been made on different machines."""
    return "\n\n".join(map(table, runs))


def embedded(results):
    """A sentence about what benchmarks/embed.py found."""
    found, of, theirs = results["theirs / ours"], results["machine"], results["versions"]["sentence-transformers"]
    peaks = results["peak MiB of ours by sentences: loaded, at the end"]
    (few, (_, little)), (many, (_, much)) = sorted(peaks.items(), key=lambda item: int(item[0]))
    return (
        f"**Embedding** {results['sentences']:,} sentences of novels ({results['tokens']:,} tokens) with "
        f"all-MiniLM-L6-v2, tokenising included: {found['best']:.2f}x sentence-transformers {theirs} at its best batch "
        f"size ({results['their batch size']}), median {found['median']:.2f}x; vectors equal within "
        f"{results['largest difference']:.0e}. It held at most {little:,} MiB for {int(few):,} sentences and {much:,} "
        f"for {int(many):,}. {of['device']}, {of['threads']} threads, `{results['command']}`."
    )


def learnt(folder):
    """The committed trainings, a row each."""
    lines = ["| | result | beside it | trained |", "|---|---|---|---|"]
    rows = [_shakespeare(_read(folder / "tinyshakespeare-cpu")), _novels(_read(folder / "novels-bert"))]
    rows += [_labels(_read(folder / f"{name}-minilm"), title) for name, title in (("sst2", "SST-2"), ("trec", "TREC"))]
    rows += [
        _small_vit(_read(folder / name), title)
        for name, title in (("fashion", "Fashion-MNIST"), ("cifar10", "CIFAR-10"))
    ]
    rows += [_pretrained(_read(folder / "mae-cifar10"))]
    rows += [_zero_shot(_read(folder / "clip-fashion")), _retrieval(_read(folder / "clip-emoji"))]
    rows += [_translated(_read(folder / "multi30k"))]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def trusted(folder):
    """What the measurements of training itself found, a sentence each."""
    said = {"survival": _survived, "loop": _loop, "checkpointing": _twice, "plan": _planned, "preparation": _prepared}
    said |= {"optimisers": _optimised, "lora-bert": _adapted, "lora-gpt2": _adapted}
    found = {name: folder / f"{name}.json" for name in said}
    lines = [said[name](json.loads(path.read_text(encoding="utf-8"))) for name, path in found.items() if path.is_file()]
    return "\n".join(f"- {line}" for line in lines)


def _survived(found):
    models = len(found["runs"])
    return (
        f"{found['kills']} SIGKILLs at random moments of runs of {models} models: {found['lost_steps']} steps lost, "
        f"{found['differing_runs']} runs that differ in any bit (`benchmarks/survival.py`)."
    )


def _loop(found):
    loop, seconds = found["loop"], found["seconds"]
    return (
        f"The loop takes {loop['more']['median']:.1%} (best: {loop['more']['best']:.1%}) of a step of "
        f"{loop['milliseconds a step, bare']:.0f} ms beside a bare one of the same computation{_compiled(found)}. "
        "A checkpoint of GPT-2 (124M) is written while the next step computes, which takes "
        f"{seconds['blocks for']['median']:.2f} s longer for it, of {seconds['step']:.2f} s; going on takes "
        f"{seconds['resumed, with its first step']:.2f} s with its first step, loading alone "
        f"{seconds['loading']:.2f} s (`benchmarks/loop.py`)."
    )


def _compiled(found):
    took = found["compile"]
    if "uncompiled" in took:
        return ""
    more = took["more"]["median"]
    return f"; with `compile=true` the same step takes {abs(more):.1%} {'more' if more > 0 else 'less'}, once compiled"


def _twice(found):
    time = found["time"]
    return (
        f"Activation checkpointing holds {found['memory']:.1%} of the blocks' activations for {time['best']:.2f}x the "
        f"time, median {time['median']:.2f}x ({found['model']}; `benchmarks/checkpointing.py`)."
    )


def _planned(found):
    ratio, time, several = found["ratio"], found["ratio of seconds"], len(found["configurations"])
    return (
        f"Planned memory is {ratio['least']:.2f} to {ratio['most']:.2f} of the peak that {several} configurations of "
        f"all models took, planned time {time['least']:.2f} to {time['most']:.2f} of a step's (`benchmarks/plan.py`)."
    )


def _optimised(found):
    parts = []
    for model, title in (("gpt2", "GPT-2"), ("vit", "ViT")):
        for name, way in (("adamw", "AdamW"), ("muon", "Muon")):
            each = found["found"][model][name]
            loss = f"{each['mean']:.3f} (± {each['standard deviation']:.3f})"
            parts.append(f"{title} by {way} {loss} at {each['milliseconds a step']:.0f} ms a step")
    return (
        "Validation loss after as many steps, each at the best of its own rates, mean and deviation of four seeds: "
        f"{'; '.join(parts)} (`benchmarks/optimisers.py`)."
    )


def _prepared(found):
    rows = [(row["text_bytes"] / 1e9, name, row["preparing_mib"]) for name, row in found["rows"].items()]
    said = "; ".join(f"{size:.1f} GB, {name}: {mib:.0f} MiB" for size, name, mib in rows)
    return f"Making ids of a text took, above the interpreter, of {said} (`benchmarks/preparation.py`)."


def _adapted(found):
    full, low = (found["found"][way] for way in ("full", "rank 8"))
    of_text = found["figure"] == "accuracy"
    say = "{:.1%} right".format if of_text else "{:.3f} nats a token".format
    title = "all-MiniLM-L6-v2 on SST-2" if of_text else "A small GPT-2 of novels, on plays"
    share = low["parameters that learn"] / full["parameters that learn"]
    return (
        f"{title}, {found['settings']['steps']} steps: {say(full['mean'])} by full fine-tuning, {say(low['mean'])} by "
        f"LoRA of rank 8, where {share:.1%} of the parameters learn and {low['bytes kept'] / 2**20:.1f} MiB are kept "
        f"of {full['bytes kept'] / 2**20:.1f} (test, means over seeds, each at the best of its own rates; "
        "`benchmarks/lora.py`)."
    )


def _read(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def _shakespeare(found):
    result = f"{found['mean loss']:.3f} nats, mean of {len(found['seeds'])} seeds"
    trained = f"{found['parameters']:,} parameters, {found['settings']['steps']:,} steps"
    return (
        "GPT-2, characters of tinyshakespeare, nanoGPT's CPU setting",
        result,
        f"nanoGPT: {found['nanoGPT']}",
        trained,
    )


def _novels(found):
    unigram, right = found["unigram"], found["whole novels"]["test"]["accuracy"]
    below = f"{found['best validation loss']:.3f} nats, {found['below the unigram']:.0%} below the unigram"
    beside = f"unigram: {unigram['loss']:.3f} nats, {unigram['accuracy']:.1%} right"
    trained = f"{found['parameters']:,} parameters, {found['minutes of training']:.0f} minutes on one core"
    title = "BERT, hidden tokens of English novels it never saw, from nothing"
    return title, f"{below}; {right:.1%} right on the test novels", beside, trained


def _labels(found, title):
    runs, means = found["runs"]["fine-tuned"].values(), found["mean test accuracy"]
    tests, minutes = [run["test"]["accuracy"] for run in runs], max(run["minutes of training"] for run in runs)
    result = f"{means['fine-tuned']:.1%} of the test, {min(tests):.1%} to {max(tests):.1%} over {len(tests)} seeds"
    beside, trained = (
        f"from random weights, one seed: {means['random']:.1%}",
        f"{minutes:.0f} minutes a seed on one core",
    )
    return f"all-MiniLM-L6-v2 fine-tuned on {title}", result, beside, trained


def _small_vit(found, title):
    run = found["runs"]["scratch"]
    sizes = f"{run['parameters']:,} parameters, {run['epochs']} epochs, {run['minutes']:.0f} minutes on one shared core"
    beside = f"held out from training: {run['validation']:.1%}"
    return f"ViT on {title}, from nothing", f"{run['test']['accuracy']:.1%} of the test pictures", beside, sizes


def _pretrained(found):
    """What an encoder that learnt to paint is worth, beside one that did not."""
    runs = found["runs"]
    test = {name: run["test"]["accuracy"] for name, run in runs.items() if "test" in run}
    probes = {kind: runs["pretrained"][kind]["probe"]["accuracy"] for kind in ("learnt", "random")}
    tuned = ", ".join(f"{test[f'fine-tuned-{n}']:.1%} after {n} epochs" for n in (5, 20))
    longest = max((run for run in runs if run.startswith("scratch")), key=lambda run: runs[run]["epochs"])
    beside = ", ".join(f"{test[f'scratch-{n}']:.1%} after {n}" for n in (5, 20, runs[longest]["epochs"]))
    title = f"ViT on CIFAR-10, from an MAE's encoder ({runs['pretrained']['epochs']} epochs of painting)"
    probed = f"its features, by a linear probe: {probes['learnt']:.1%}"
    return (
        title,
        f"{tuned}; {probed}",
        f"from nothing: {beside}; random features: {probes['random']:.1%}",
        (f"{runs[longest]['parameters']:,} parameters, {runs['pretrained']['minutes']:.0f} minutes of painting"),
    )


def _zero_shot(found):
    run = found["runs"]["scratch"]
    result = f"{run['test']['accuracy']:.1%} of the test pictures by prompts, zero-shot"
    return (
        "CLIP on Fashion-MNIST and prompts, from nothing",
        result,
        f"chance: {run['chance']['accuracy']:.0%}",
        _size(run),
    )


def _retrieval(found):
    run = found["runs"]["scratch"]
    test, chance = (
        {
            way: ", ".join(f"{run[part][f'{way}_at_{k}']:.1%}" for k in (1, 5, 10))
            for way in ("text_to_image", "image_to_text")
        }
        for part in ("test", "test by chance")
    )
    result = (
        f"of held-out emoji, recall at 1, 5, 10: {test['text_to_image']} by text; {test['image_to_text']} by picture"
    )
    return "CLIP on Noto emoji and their names, from nothing", result, f"chance: {chance['text_to_image']}", _size(run)


def _translated(found):
    scores = (
        f"{score['5 beams']['bleu']:.1f} on {name} ({score['greedy']['bleu']:.1f} greedily)"
        for name, score in found["tests"].items()
    )
    result = f"sacreBLEU with 5 beams {', '.join(scores)}"
    title = "Encoder-decoder on Multi30k, German to English, from nothing"
    return title, result, f"published: {found['published']}", _size(found)


def _size(run):
    return f"{run['parameters']:,} parameters, {run['minutes']:.0f} minutes on one shared core"


def replaced(text, name, body):
    """`text` with `body` between its markers for `name`."""
    begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
    found = re.findall(re.escape(begin) + "[\\s\\S]*?" + re.escape(end), text)
    if len(found) != 1:
        raise SystemExit(f"Expected one {begin.strip()} with its {end.strip()}, found {len(found)}.")
    return text.replace(found[0], begin + body + end)


def picture(results, path, model=None):
    """The ratios as bars, of one model alone where it is named; dots are medians. Equal results give equal files."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in results["rows"] if model in (None, row["model"])]
    with matplotlib.rc_context({"svg.hashsalt": "scratchformers", "svg.fonttype": "path"}):
        figure = Figure(figsize=(7, 1 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots()
        places = range(len(rows))
        axes.barh(places, [row["best"] for row in rows], color="#4c72b0", height=0.6, label="best round")
        axes.plot([row["median"] for row in rows], places, "o", color="#dd8452", label="median round")
        axes.axvline(1, color="black", linewidth=1)
        axes.set_yticks(places, [f"{row['model']}: {row['row']}" for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("times as fast as transformers")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def differences(first, second):
    """Of each row in both runs, how far the ratios of the best rounds are apart, as a share of the smaller."""
    best = [{f"{row['model']}, {row['row']}": row["best"] for row in run["rows"]} for run in (first, second)]
    if best[0].keys() != best[1].keys():
        raise SystemExit(f"The runs have different rows: {', '.join(sorted(best[0].keys() ^ best[1].keys()))}.")
    return {name: max(pair) / min(pair) - 1 for name in best[0] for pair in [(best[0][name], best[1][name])]}


def agreement(found):
    """A sentence about two runs, from what `differences` found of them."""
    ordered = sorted(found, key=found.get)
    apart = ", ".join(f"{name.partition(', ')[2]} {found[name]:.0%}" for name in ordered)
    verdict = "agree" if max(found.values()) <= TOLERANCE else "do not all agree"
    return (
        f"Two runs of `make bench BENCH=--quick`, one after the other on a shared machine, {verdict} within "
        f"{TOLERANCE:.0%} on the ratios of the best rounds: they are apart by {apart}."
    )


def write(readme, name, body):
    """Into the README where there is one, else on the screen."""
    if readme is None:
        print(body)
    else:
        readme.write_text(replaced(readme.read_text(encoding="utf-8"), name, body), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what bench.py or embed.py wrote, or the folder of the trainings")
    parser.add_argument("--also", type=Path, nargs="+", help="runs whose tables stand below the first's")
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--model", help="the only one whose rows are in the picture")
    parser.add_argument("--agree", type=Path, help="another run: exit 1 where a ratio differs by more than 15 %%")
    arguments = parser.parse_args()
    if arguments.also:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in (arguments.results, *arguments.also)]
        write(arguments.readme, "speed", tables(runs))
        return
    if arguments.results.is_dir():
        write(arguments.readme, "learnt", learnt(arguments.results))
        write(arguments.readme, "trusted", trusted(arguments.results))
        return
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    if "sentences" in results:
        write(arguments.readme, "embed", embedded(results))
        return
    if arguments.agree:
        found = differences(results, json.loads(arguments.agree.read_text(encoding="utf-8")))
        print("\n".join(f"{name}: {share:.1%} apart" for name, share in found.items()))
        if arguments.readme:
            write(arguments.readme, "agreement", agreement(found))
        raise SystemExit(int(max(found.values()) > TOLERANCE))
    if arguments.readme:
        write(arguments.readme, "speed", table(results))
    if arguments.picture:
        picture(results, arguments.picture, arguments.model)
    if not (arguments.readme or arguments.picture):
        print(table(results))


if __name__ == "__main__":
    main()
