"""Writes what was measured into BENCHMARKS.md, between its markers, and into benches/plots.

Its argument is the folder with the lines of JSON. Of a row that was measured more than once the last one stands.
"""

import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "BENCHMARKS.md"
SIZING = ROOT / "docs" / "sizing.md"
PLOTS = ROOT / "benches" / "plots"
BENCHES = ["http", "download", "broker", "uploads", "scale"]
MARKED = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# The colours of Okabe and Ito, which colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6b6b6b"

plt.rcParams.update({
    "svg.fonttype": "none",
    "svg.hashsalt": "benchmarks",
    "font.family": "sans-serif",
    "font.size": 11,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
})


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def number(value):
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(values):
    return f"{number(median(values))} ({number(min(values))} to {number(max(values))})"


def load(folder):
    results = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            key = tuple(result.get(name) for name in ("kind", "row", "unit", "peer", "plot", "series", "x"))
            results[key] = result
    return sorted(results.values(), key=lambda result: BENCHES.index(result["bench"]))


def bound(result):
    target = result["target"]
    if target is None:
        return "", ""
    if "at_least" in target:
        least = target["at_least"]
        value = result["ratio"]
        return f"≥ {least:.2f}" if least < 2 else f"≥ {least:.0f}", "yes" if value >= least else "**no**"
    most = target["at_most"]
    value = result["ratio"] if "ratio" in result else median(result["values"])
    return f"≤ {most:g}" + (f" {result['unit']}" if "ratio" not in result else ""), "yes" if value <= most else "**no**"


def comparisons(results):
    lines = [
        "| work | unit | product | peer | peer's | ratio | target | reached |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        if result["kind"] == "compare":
            target, reached = bound(result)
            lines.append(
                f"| {result['row']} | {result['unit']} | {cell(result['product'])} | {result['peer']} |"
                f" {cell(result['peer_values'])} | {result['ratio']:.2f} | {target} | {reached} |"
            )
    return lines


def figures(results):
    lines = ["| figure | product | target | reached |", "| --- | --- | --- | --- |"]
    for result in results:
        if result["kind"] == "figure":
            target, reached = bound(result)
            lines.append(f"| {result['row']} | {cell(result['values'])} {result['unit']} | {target} | {reached} |")
    return lines


def says(*command):
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    program = shutil.which(command[0], path=path)
    if program is None:
        return "unknown"
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, cwd=ROOT)
    return (done.stdout + done.stderr).strip() or "unknown"


def package(name):
    return says("dpkg-query", "--show", "--showformat=${Version}", name)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def machine(results, folder):
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) / 2**20
    file_system = says("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(folder))
    commits = sorted({result["commit"] for result in results})
    rounds = sorted({result["rounds"] for result in results if "rounds" in result})
    loads = {}
    for result in results:
        if "load_before" in result:
            loads[result["bench"]] = max(loads.get(result["bench"], 0), result["load_before"])
    python = platform.python_version()
    return [
        f"- {datetime.date.today().isoformat()}, commit {', '.join(commits)}",
        f"- rounds: {' or '.join(map(str, rounds))}",
        "- load average of the minute before each benchmark, which includes the previous benchmark:\n"
        f"  {', '.join(f'{bench} {load:.1f}' for bench, load in loads.items())}",
        f"- {os.cpu_count()} cores ({processor()}), {memory:.0f} GiB of memory,"
        f" Linux {platform.release().split('-')[0]}; durable data on {file_system}",
        f"- {says('rustc', '--version')}, `cargo bench` (the release profile)",
        f"- nginx {package('nginx-light')}, RabbitMQ {package('rabbitmq-server')}, Erlang {package('erlang-base')},"
        f" wrk {package('wrk')}",
        f"- Python {python}: FastAPI {version('fastapi')}, uvicorn {version('uvicorn')}, uvloop {version('uvloop')},"
        f" httptools {version('httptools')}, aio_pika {version('aio-pika')}",
    ]


def save(figure, name):
    PLOTS.mkdir(exist_ok=True)
    figure.savefig(PLOTS / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def plot_ratios(results):
    """Each row's ratio to its peer, with the target as a mark; those to FastAPI beside, on a scale of their own."""
    rows = [result for result in results if result["kind"] == "compare" and result["target"] is not None]
    groups = [
        ("ratio to nginx, actix-web alone, amiquip alone", [row for row in rows if row["peer"] != "FastAPI"]),
        ("times FastAPI", [row for row in rows if row["peer"] == "FastAPI"]),
    ]
    groups = [(title, group) for title, group in groups if group]
    if not groups:
        return
    heights = [len(group) for _, group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(9, 0.5 * sum(heights) + 1.2 * len(groups)), height_ratios=heights, squeeze=False
    )
    for axis, (title, group) in zip(axes[:, 0], groups):
        group = group[::-1]
        for place, row in enumerate(group):
            at_least = row["target"].get("at_least")
            target = at_least if at_least is not None else row["target"]["at_most"]
            reached = row["ratio"] >= target if at_least is not None else row["ratio"] <= target
            axis.barh(place, row["ratio"], color=BLUE if reached else ORANGE, height=0.62)
            axis.plot([target, target], [place - 0.42, place + 0.42], color="black", linewidth=2.2)
            sign = "≥" if at_least is not None else "≤"
            text = f"{row['ratio']:.2f}  ({sign} {target:g})"
            at = (max(row["ratio"], target), place)
            axis.annotate(text, at, xytext=(6, 0), textcoords="offset points", va="center", fontsize=10)
        labels = [row["row"] + ("" if row["peer"] == "FastAPI" else f"  –  {row['peer']}") for row in group]
        axis.set_yticks(range(len(group)), labels)
        axis.set_xlabel(f"{title}; black: the target; orange: missed")
        widest = max(max(row["ratio"], *row["target"].values()) for row in group)
        axis.set_xlim(0, widest * 1.22)
        axis.grid(axis="y", visible=False)
    figure.tight_layout()
    save(figure, "ratios")


def plot_growth(results, plot, label, name):
    points = [result for result in results if result["kind"] == "point" and result["plot"] == plot]
    if not points:
        return
    figure, axis = plt.subplots(figsize=(7.5, 4))
    for series, color, marker in (("GET hit", BLUE, "o"), ("AddBufferMsg", ORANGE, "s")):
        own = sorted((point for point in points if point["series"] == series), key=lambda point: point["x"])
        x = [point["x"] for point in own]
        axis.plot(x, [median(point["values"]) for point in own], color=color, marker=marker, label=series)
        low, high = ([f(point["values"]) for point in own] for f in (min, max))
        axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    axis.set_xscale("log")
    if points[0]["unit"] == "MB/s":
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.set_xlabel(label)
    axis.set_ylabel(points[0]["unit"])
    axis.legend(frameon=False)
    save(figure, name)


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def sizing(text, page):
    """docs/sizing.md with the figures of the page: a row that begins with a link to one has its median and its unit."""
    figures = {}
    for row in (cells(line) for line in page.splitlines() if line.startswith("| ")):
        if len(row) == 4:
            figures[row[0], row[1].rsplit(") ", 1)[-1]] = row[1].split(" (")[0]
        elif len(row) > 5:
            figures[row[0], row[1]] = row[2].split(" (")[0]

    def replaced(found):
        name, unit = found[2], found[4]
        return found[1] + figures.get((name, unit), found[3]) + " " + unit + " |"

    return re.sub(r"(\| \[([^]]+)\]\([^)]*BENCHMARKS\.md[^)]*\) \| )([0-9.,]+) ([^|]+) \|", replaced, text)


def main():
    folder = pathlib.Path(sys.argv[1])
    results = load(folder)
    if not results:
        sys.exit("report.py: nothing has been measured")
    parts = {
        "machine": machine(results, folder),
        "comparisons": comparisons(results),
        "figures": figures(results),
    }
    page = MARKED.sub(lambda found: found[1] + "\n".join(parts[found[2]]) + "\n" + found[3], PAGE.read_text())
    PAGE.write_text(page)
    SIZING.write_text(sizing(SIZING.read_text(), page))
    plot_ratios(results)
    plot_growth(results, "messages held", "messages held", "messages-held")
    plot_growth(results, "message size", "bytes of a message", "message-size")
    plot_growth(results, "connections", "connections", "connections")


if __name__ == "__main__":
    main()
