"""Writes the documents' tables and chart from benchmarks/results/*.json, so that no number is typed.

python benchmarks/readme.py            # --check: fail if one is not up to date
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import another_site_table
import bench_table
import kernels_table
import numpy as np
import pet_tables
import pipeline_table
import typer

from sctrt.bench import chart
from sctrt.bench import report as reports
from sctrt.evaluation import html, inside, report, summary
from sctrt.evaluation.metrics import Metrics

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def held_out(content: dict[str, Any]) -> str:
    """One table a case."""
    parts = []
    for case, rows in content["cases"].items():
        parts.append(f"**{case}**\n\n{report.markdown({name: Metrics(**row) for name, row in rows.items()})}")
    return "\n".join([*parts, f"`{content['command']}` at commit {content['commit']}. {content['note']}\n"])


OURS_AND_OTHERS = ("synthetic CT", "water", "4 classes of the true CT")


def held_out_short(content: dict[str, Any]) -> str:
    """One row a case: ours, and two that know the true CT."""
    columns = {
        "MAE body [HU]": "mae_body",
        "MAE lung [HU]": "mae_lung",
        "MAE bone [HU]": "mae_bone",
        "bone Dice": "bone_dice_200",
    }
    lines = [f"| synthetic CT / water / 4 classes | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for case, rows in content["cases"].items():
        cells = [" / ".join(_short(rows[name][measure]) for name in OURS_AND_OTHERS) for measure in columns.values()]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"`{content['command']}` at commit {content['commit']}. {content['note']}\n"])


def before_after(content: dict[str, Any]) -> str:
    """Synthetic CTs of the weights before fine-tuning, of those after it, and of their mean, which ships."""
    earlier = [json.loads((RESULTS / f"held_out_{name}.json").read_text())["cases"] for name in ("before", "tuned")]
    columns = {
        "MAE body [HU]": "mae_body",
        "MAE body + 12 mm [HU]": "mae_dilated_12mm",
        "MAE lung [HU]": "mae_lung",
        "MAE soft [HU]": "mae_soft",
        "MAE bone [HU]": "mae_bone",
        "bone Dice": "bone_dice_200",
    }
    lines = [f"| before, stage 4, mean | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for case, rows in content["cases"].items():
        three = [weights[case]["synthetic CT"] for weights in earlier] + [rows["synthetic CT"]]
        cells = [", ".join(_short(one[name]) for one in three) for name in columns.values()]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1 else f"{value:.0f}"


def runtimes(content: dict[str, Any]) -> str:
    """HU differences between runtimes."""
    lines = ["| against PyTorch in fp32 | mean [HU] | 99.9th percentile [HU] | max [HU] | flipped codes |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name, row in content["rows"].items():
        if name == content["oracle"]:
            continue
        numbers = f"{row['mean_hu']:.4f} | {row['p99.9_hu']:.3f} | {row['max_hu']:.1f}"
        lines.append(f"| {name} | {numbers} | {row['flipped_codes']} of {row['codes']} |")
    return "\n".join([*lines, "", f"`{content['command']}` at commit {content['commit']}, {content['device']}.\n"])


def experiments(content: dict[str, Any]) -> str:
    """One row an experiment: mean and standard deviation over folds."""
    rows = content["experiments"]
    names = list(next(iter(rows.values()))["measures"])
    lines = [f"| | folds | {' | '.join(names)} |", f"| --- | ---: |{' ---: |' * len(names)}"]
    for experiment, row in rows.items():
        cells = [_mean_and_spread(row["measures"][name]) for name in names]
        lines.append(f"| {experiment} | {len(row['folds'])} | {' | '.join(cells)} |")
    where = f"at commit {content['commit']}, {content['device']}"
    return "\n".join([*lines, "", f"{content['note']} `{content['command']}` {where}.\n"])


PAIRED = ("MAE body [HU]", "PSNR body [dB]", "MAE lung [HU]", "MAE bone [HU]")
BASELINE = "scratch"
ONE_CHANGE = (  # experiments that differ in one thing
    ("enc-frozen, photographs", "no-frozen, photographs"),
    ("scratch, bone 3", "scratch"),
    ("no-frozen, photographs, bone 3", "no-frozen, photographs"),
    ("enc-frozen, photographs, bone 3", "enc-frozen, photographs"),
    ("no-frozen, photographs, three scales", "no-frozen, photographs"),
    ("no-frozen, photographs, codebook fixed", "no-frozen, photographs"),
)


def experiments_paired(content: dict[str, Any]) -> str:
    """Each experiment minus the baseline."""
    names = [name for name in content["experiments"] if name != BASELINE]
    return _differences(content, f"minus {BASELINE}", [(name, name, BASELINE) for name in names])


def experiments_one_change(content: dict[str, Any]) -> str:
    """Experiments minus those that they differ from in one thing."""
    return _differences(content, "difference", [(f"{name} minus {of}", name, of) for name, of in ONE_CHANGE])


def _differences(content: dict[str, Any], title: str, pairs: list[tuple[str, str, str]]) -> str:
    """Pairs (label, experiment, of what it is the difference) on the folds of both, whose patients are the same."""
    rows = content["experiments"]
    lines = [f"| {title} | folds | {' | '.join(PAIRED)} |", f"| --- | ---: |{' ---: |' * len(PAIRED)}"]
    for label, name, of in pairs:
        folds = sorted(set(rows[name]["folds"]) & set(rows[of]["folds"]))
        if not folds:
            continue
        cells = []
        for measure in PAIRED:
            change = np.subtract(*([_of_fold(rows[one], measure, fold) for fold in folds] for one in (name, of)))
            better = int((change > 0 if "PSNR" in measure else change < 0).sum())
            spread = f" ± {change.std(ddof=1):.1f}" if len(folds) > 1 else ""
            cells.append(f"{change.mean():+.1f}{spread} (better in {better})")
        lines.append(f"| {label} | {len(folds)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{content['note']}\n"])


def _of_fold(row: dict[str, Any], measure: str, fold: int) -> float:
    return row["measures"][measure]["folds"][row["folds"].index(fold)]


def experiments_repeated(content: dict[str, Any]) -> str:
    """Folds that were trained once more, beside the first time."""
    first = json.loads((RESULTS / "experiments.json").read_text())["experiments"]
    lines = [f"| first -> again | fold | {' | '.join(PAIRED)} |", f"| --- | ---: |{' ---: |' * len(PAIRED)}"]
    for name, row in content["experiments"].items():
        for fold in row["folds"]:
            cells = [f"{_of_fold(first[name], m, fold):.1f} -> {_of_fold(row, m, fold):.1f}" for m in PAIRED]
            lines.append(f"| {name} | {fold} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{content['note']} {_made(content)}\n"])


def _mean_and_spread(measure: dict[str, Any]) -> str:
    digits = 2 if abs(measure["mean"]) < 1 else 1
    spread = "" if measure["sd"] is None else f" ± {measure['sd']:.{digits}f}"
    return f"{measure['mean']:.{digits}f}{spread}"


def training(content: dict[str, Any]) -> str:
    """What each stage reached on the validation cases."""
    names = ("step", "mae_body", "mae_lung", "mae_bone", "dice_bone", "codes", "perplexity")
    headings = ("step", "MAE body [HU]", "MAE lung [HU]", "MAE bone [HU]", "bone Dice", "codes used", "perplexity")
    lines = [f"| stage | {' | '.join(headings)} |", f"| --- |{' ---: |' * len(headings)}"]
    for stage, rows in content["stages"].items():
        for row in rows:
            cells = [f"{row[name]:.2f}" if name == "dice_bone" else f"{row[name]:.0f}" for name in names]
            lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"`{content['command']}`\n"])


def precision(content: dict[str, Any]) -> str:
    """What layers in float32 buy."""
    lines = ["| | in fp32 | mean [HU] | 99.9th percentile [HU] | codes flipped | in the body |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in content["rows"]:
        flipped = f"{row['flipped_share']:.1%} | {row['flipped_share_in_body']:.1%}"
        hu = f"{row['mean_hu']:.2f} | {row['p99.9_hu']:.1f}"
        lines.append(f"| {row['precision']} | {row['in fp32']} | {hu} | {flipped} |")
    what = f"Every {content['every']}th slice of one simulated body, single planes before fusion, against fp32."
    return "\n".join([*lines, "", f"{what} {_made(content)}\n"])


def engine_memory(content: dict[str, Any]) -> str:
    """Reported and planned, of the half that needs more."""
    rows: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for row in content["rows"]:
        size = f"{row['height']} x {row['width']}"
        rows.setdefault((row["model"], size, row["batch"], row["precision"]), []).append(row)
    lines = ["| model | slice | slices | | reported [MB] | planned [MB] |", "| --- | --- | ---: | --- | ---: | ---: |"]
    for (model, size, batch, kind), parts in rows.items():
        most = max(row["bytes"] for row in parts) / 1e6
        lines.append(f"| {model} | {size} | {batch} | {kind} | {most:.0f} | {parts[0]['estimate'] / 1e6:.0f} |")
    version = f"TensorRT-RTX {content['tensorrt_rtx']}, built without a GPU."
    return "\n".join([*lines, "", f"{version} {_made(content)}\n"])


def padding(content: dict[str, Any]) -> str:
    """What slices padded further cost."""
    lines = [
        "| case | padded to multiples of | and by | MAE body [HU] | change [HU] |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for case, rows in content["cases"].items():
        for row in rows:
            hu = f"{row['mae_body']:.1f} | {row['change']:.1f}"
            lines.append(f"| {case} | {row['step']} | {row['wider']} | {hu} |")
    return "\n".join([*lines, "", f"Change: mean |HU - HU of the first row| in the body. {_made(content)}\n"])


def plans(content: dict[str, Any]) -> str:
    """The memory plan by size of card."""
    lines = [
        "| card [GB] | slices at a time: axial, coronal, sagittal | volumes on the | peak [GB] |",
        "| ---: | --- | --- | ---: |",
    ]
    for gb, row in content["rows"].items():
        batches = ", ".join(
            f"{plane['batch']} {'tiles of' if plane['tiled'] else 'of'} {plane['engine'][0]} x {plane['engine'][1]}"
            for plane in row["planes"].values()
        )
        lines.append(f"| {gb} | {batches} | {row['volumes']} | {row['peak_gb']:.1f} |")
    return "\n".join([*lines, "", f"`{content['command']}` at commit {content['commit']}.\n"])


def inside_codes(content: dict[str, Any]) -> str:
    """Which codes are used, on average and case by case, and whether the codebook collapsed."""
    found = _examined(content)
    made = inside.tables(found)
    titles = ("Perplexity", "Share of the most used code [%]", "Case by case")
    codes = next(title for title in made if title.startswith("Codes used"))
    warnings = [f"{name}: {text}" for name, case in found.items() for text in case.warnings]
    verdict = " ".join(warnings) or f"No case of {len(found)} warns of a collapse."
    cases = html.Table(made[titles[-1]].headings[:3], [row[:3] for row in made[titles[-1]].rows])
    tables = {codes: made[codes], **{title: made[title] for title in titles[:-1]}, titles[-1]: cases}
    return f"{_titled(tables)}\n{verdict} {_made(content)} {content['note']}\n"


def inside_fusions(content: dict[str, Any]) -> str:
    """The mean over the cases, and what each case says."""
    found = _examined(content)
    made = inside.tables(found)
    table, cases = (next(t for title, t in made.items() if title.startswith(s)) for s in ("Fusions", "Case by case"))
    scores = html.Table(["better : worse than the median", *cases.headings[4:]], [[r[0], *r[4:]] for r in cases.rows])
    return f"{_markdown(table)}\n{_markdown(scores)}\n{_made(content)} {content['note']}\n"


def inside_lines(content: dict[str, Any]) -> str:
    """Expected and true errors of attenuation factors."""
    found = _examined(content)
    made = {title: table for title, table in inside.tables(found).items() if "expect" in title}
    voxels = ", ".join(f"{name} {case.voxel_rank_correlation:.2f}" for name, case in found.items())
    said = f"{inside.nearest(found)} Voxels, rank correlation of spread and |error|: {voxels}."
    return f"{_titled(made)}\n{said} {_made(content)} {content['note']}\n"


def _examined(content: dict[str, Any]) -> dict[str, inside.Examination]:
    return {name: inside.Examination.model_validate(case) for name, case in content["cases"].items()}


def _titled(tables: dict[str, html.Table]) -> str:
    return "\n".join(f"{title}:\n\n{_markdown(table)}" for title, table in tables.items())


def _markdown(table: html.Table) -> str:
    return summary.markdown_table(table.headings, table.rows)


def _made(content: dict[str, Any]) -> str:
    return f"`{content['command']}` at commit {content['commit']}, {content['device']}."


SECTIONS = (  # document, section, results, renderer
    ("README.md", "held-out-short", "held_out.json", held_out_short),
    ("README.md", "speed", "bench.json", bench_table.short),
    ("docs/held_out.md", "held-out", "held_out.json", held_out),
    ("docs/speed.md", "stages", "bench.json", bench_table.stages),
    ("docs/speed.md", "runtimes", "runtimes.json", runtimes),
    ("docs/speed.md", "kernels", "kernels.json", kernels_table.short),
    ("docs/speed.md", "gpu", "gpu_pipeline.json", pipeline_table.markdown),
    ("docs/model.md", "before-after", "held_out.json", before_after),
    ("docs/model.md", "pet-before-after", "corrected_pet.json", pet_tables.before_after),
    ("docs/model.md", "training", "training.json", training),
    ("docs/engines.md", "precision", "precision.json", precision),
    ("docs/engines.md", "engine-memory", "engine_memory.json", engine_memory),
    ("docs/engines.md", "padding", "padding.json", padding),
    ("docs/engines.md", "plans", "plans.json", plans),
    ("docs/physics.md", "honesty", "pet_honesty.json", pet_tables.honesty),
    ("docs/evaluation.md", "corrected-pet", "corrected_pet.json", pet_tables.corrected),
    ("docs/inside.md", "codes", "examine.json", inside_codes),
    ("docs/inside.md", "fusions", "examine.json", inside_fusions),
    ("docs/inside.md", "lines", "examine.json", inside_lines),
    ("docs/experiments.md", "experiments", "experiments.json", experiments),
    ("docs/experiments.md", "experiments-paired", "experiments.json", experiments_paired),
    ("docs/experiments.md", "experiments-one-change", "experiments.json", experiments_one_change),
    ("docs/experiments.md", "experiments-repeated", "experiments_repeated.json", experiments_repeated),
    ("docs/another_site.md", "another-site", "another_site.json", another_site_table.markdown),
    ("docs/benchmarks.md", "bench", "bench.json", bench_table.headline),
    ("docs/benchmarks.md", "bench-pipeline", "bench.json", bench_table.pipeline),
    ("docs/benchmarks.md", "bench-others", "bench.json", bench_table.others),
    ("docs/benchmarks.md", "bench-cuda", "bench_cuda.json", bench_table.pipeline),
    ("docs/benchmarks.md", "scaling", "scaling.json", bench_table.scaling),
    ("docs/roofline.md", "roofline", "roofline.json", bench_table.roofline),
    ("docs/kernels.md", "kernels", "kernels.json", kernels_table.markdown),
    ("docs/kernels.md", "kernels-cuda", "kernels_cuda.json", kernels_table.markdown),
)
CHART, CHART_OF = "docs/speed.svg", "bench.json"
# Where no GPU was at hand there is no file, and the document keeps its words.
NEED_A_GPU = {"kernels_cuda.json", "gpu_pipeline.json", "bench_cuda.json"}


def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail on a stale table.")] = False,
) -> None:
    for document, name, file, render in SECTIONS:
        if file in NEED_A_GPU and not (RESULTS / file).exists():
            continue
        path = ROOT / document
        table = render(json.loads((RESULTS / file).read_text()))
        pattern = rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)"
        old = path.read_text()
        new, places = re.subn(pattern, lambda m, table=table: f"{m[1]}{table}{m[2]}", old, flags=re.DOTALL)
        if places != 1:
            raise SystemExit(f"{document}: expected one place for {name} between <!-- begin and end -->, got {places}")
        if new == old:
            continue
        if check:
            raise SystemExit(f"{document}: {name} is not what benchmarks/results says; run python benchmarks/readme.py")
        path.write_text(new)
    _chart(check)


def _chart(check: bool) -> None:
    """It names the numbers that it was drawn from; how it is drawn may differ from machine to machine."""
    path, found = ROOT / CHART, reports.load(RESULTS / CHART_OF)
    if path.exists() and chart.source(found) in path.read_text():
        return
    if check:
        raise SystemExit(f"{CHART} was not drawn from {CHART_OF}; run python benchmarks/readme.py")
    chart.draw(found, path)


if __name__ == "__main__":
    typer.run(main)
