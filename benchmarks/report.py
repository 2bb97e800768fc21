"""What `benchmarks/bench.py` found, as the README's table and picture, and how far two runs of it agree.

python benchmarks/report.py benchmarks/results/cpu.json --readme README.md --picture benchmarks/results/cpu.svg
python benchmarks/report.py benchmarks/results/quick-1.json --agree benchmarks/results/quick-2.json --readme README.md
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
    return "\n".join([*lines, "", where])


def replaced(text, name, body):
    """`text` with `body` between its markers for `name`."""
    begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
    found = re.findall(re.escape(begin) + "[\\s\\S]*?" + re.escape(end), text)
    if len(found) != 1:
        raise SystemExit(f"Expected one {begin.strip()} with its {end.strip()}, found {len(found)}.")
    return text.replace(found[0], begin + body + end)


def picture(results, path):
    """The ratios as bars; a dot is the median. Equal results give equal files."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = results["rows"]
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--agree", type=Path, help="another run: exit 1 where a ratio differs by more than 15 %%")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    if arguments.agree:
        found = differences(results, json.loads(arguments.agree.read_text(encoding="utf-8")))
        print("\n".join(f"{name}: {share:.1%} apart" for name, share in found.items()))
        if arguments.readme:
            text = arguments.readme.read_text(encoding="utf-8")
            arguments.readme.write_text(replaced(text, "agreement", agreement(found)), encoding="utf-8")
        raise SystemExit(int(max(found.values()) > TOLERANCE))
    if arguments.readme:
        text = arguments.readme.read_text(encoding="utf-8")
        arguments.readme.write_text(replaced(text, "speed", table(results)), encoding="utf-8")
    if arguments.picture:
        picture(results, arguments.picture)
    if not (arguments.readme or arguments.picture):
        print(table(results))


if __name__ == "__main__":
    main()
