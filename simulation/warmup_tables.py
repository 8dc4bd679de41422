"""Chapter 4's tables and figures beside what ``fedstill warmup-study`` measured, for console and docs.

Differences between systems are taken on the same images and loads, seed by seed; intervals are Student's t over seeds
(of no width for one seed). The thesis runs ViT-Base on a GPU and on finer classes, so only directions compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from fedstill.cloud_server.serving.policies import LABELS
from fedstill.cloud_server.warmup.reductions import spread
from fedstill.simulation.elastic_tables import Sheet, sheet_markdown
from fedstill.simulation.results import ResultsError
from fedstill.simulation.serving_summary import Mean
from fedstill.simulation.statistics import signed
from fedstill.simulation.warmup_results import SYSTEMS, ServedRow, TaskRun, WarmupStudy

PRINTED_BLENDS = (
    "r10 91.41, 78.56, 47.45, 61.45; r15 91.37, 80.11, 48.98, 70.13; r20 91.08, 79.88, 54.15, 77.19; "
    "0.50r10+0.50r20 92.39, 80.07, 53.84, 74.4; 0.10r10+0.90r20 91.58, 80.45, 54.54, 77.3; "
    "0.20r10+0.80r20 91.79, 80.98, 54.43, 77.21 (CIFAR, CUB, FGVCA, SCars)"
)
PRINTED_SOUPS = (
    "CIFAR100 88.29 and 88.68, Cars 65.53 and 70.76, CUB 74.37 and 74.07, Aircraft 53.66 and 54.16"
)


def mean_over_reductions(study: WarmupStudy, run: TaskRun, system: str) -> float:
    """Eq. (4.1) on the test images: the mean over all allowed reductions, lines between the measured ones."""
    row = run.system(system)
    measured = {reduction: row.accuracy(reduction) for reduction in study.settings.grid}
    return fmean(spread(measured, study.settings.reductions).values())


def exhaustive_seconds(study: WarmupStudy, run: TaskRun) -> float:
    """Training seconds of a model at every allowed reduction: measured on the grid, lines between."""
    measured = {row.reduction: row.seconds for row in run.models}
    return sum(spread(measured, study.settings.reductions).values())


def summary(study: WarmupStudy) -> Sheet:
    """The claim: mean accuracy over all reductions, and what it cost."""
    rows = []
    for task in study.tasks:
        runs = study.of_task(task)
        means = {name: [mean_over_reductions(study, run, name) for run in runs] for name in SYSTEMS}
        for name, label in SYSTEMS.items():
            models = [run.system(name).models for run in runs]
            shares = [
                run.seconds(m) / run.seconds(study.settings.grid) for run, m in zip(runs, models, strict=True)
            ]
            whole = [
                run.seconds(m) / exhaustive_seconds(study, run) for run, m in zip(runs, models, strict=True)
            ]
            rows.append(
                (
                    task,
                    label,
                    str(round(fmean(len(m) for m in models))),
                    Mean.of(means[name]).percent(),
                    _points(means[name], means["vanilla"]),
                    _points(means[name], means["exhaustive"]),
                    f"{fmean(shares):.2f}",
                    f"{fmean(whole):.2f}",
                )
            )
    count = len(study.settings.reductions)
    return Sheet(
        "Mean accuracy over all reductions, and cost",
        (
            "task",
            "system",
            "models",
            "accuracy",
            "vs vanilla",
            "vs Exhaustive",
            "cost, grid",
            f"cost, all {count}",
        ),
        tuple(rows),
        (
            f"Accuracy: mean over {count} reductions ({_listed(study.settings.reductions)}) on the test images, "
            f"measured at {_listed(study.settings.grid)}. Differences in points. Brackets: 95 % intervals over seeds.",
            f"Cost: training seconds as a share of Exhaustive's, which fine-tuned {len(study.settings.grid)} models "
            f"here (grid); a model for each of the {count} reductions is extrapolated from those (all {count}).",
            "Thesis: +27 points over OTAS at most, and a quarter of Exhaustive's cost.",
        ),
    )


def figure_4_3(study: WarmupStudy) -> Sheet:
    """Accuracy by reduction of fine-tuning and of inference."""
    rows = []
    for task in study.tasks:
        runs = study.of_task(task)
        for model in study.settings.grid:
            values = [fmean(run.matrix[str(model)][str(r)] for run in runs) for r in study.settings.grid]
            rows.append((task, str(model), *(f"{100 * value:.1f}" for value in values)))
    return Sheet(
        "Figure 4.3: accuracy by reduction at fine-tuning (rows) and at inference (columns)",
        ("task", "fine-tuned at", *map(str, study.settings.grid)),
        tuple(rows),
        (
            "In %, on the profiling images, mean over seeds.",
            "Thesis, in words (StanfordCars): at inference 20 the vanilla model falls from 70.8 % to 9.1 %, one "
            "fine-tuned at 20 stays at 69.0 %; fine-tuned at 100, 18.7 % are left at inference 10, where "
            "77.6 % is the best.",
        ),
    )


def figure_4_4(study: WarmupStudy) -> Sheet:
    """The best reduction to fine-tune at, by reduction of inference."""
    rows = []
    for task in study.tasks:
        runs = study.of_task(task)
        cells = []
        for reduction in study.settings.grid:
            means = {
                model: fmean(run.matrix[str(model)][str(reduction)] for run in runs)
                for model in study.settings.grid
            }
            cells.append(str(max(means, key=lambda model: means[model])))
        rows.append((task, *cells))
    return Sheet(
        "Figure 4.4: the best reduction to fine-tune at, by reduction at inference",
        ("task", *map(str, study.settings.grid)),
        tuple(rows),
        (
            "Mean over seeds on the profiling images; of equals, the smallest.",
            "Thesis, in words: about 20 for all data sets up to inference 20, then it rises to a new level.",
        ),
    )


def table_4_1(study: WarmupStudy) -> Sheet:
    """Two models and their averages, served at 15."""
    if not any(run.blends for run in study.runs):
        raise ResultsError("this study holds no data for Table 4.1: its grid lacks 10, 15 or 20")
    names = list(next(run.blends for run in study.runs if run.blends))
    rows = [
        (
            name,
            *(Mean.of([run.blends[name] for run in study.of_task(task)]).percent() for task in study.tasks),
        )
        for name in names
    ]
    return Sheet(
        "Table 4.1: warmed models and their averages at inference 15",
        ("model", *study.tasks),
        tuple(rows),
        (
            "On the test images. 0.10r10+0.90r20: weights of the models fine-tuned at 10 and 20.",
            f"Thesis, in %: {PRINTED_BLENDS}.",
        ),
    )


def figure_4_7(study: WarmupStudy) -> Sheet:
    """Accuracy of every system at every measured reduction."""
    rows = []
    for task in study.tasks:
        runs = study.of_task(task)
        for name, label in SYSTEMS.items():
            values = [fmean(run.system(name).accuracy(r) for run in runs) for r in study.settings.grid]
            rows.append((task, label, *(f"{100 * value:.1f}" for value in values)))
    return Sheet(
        "Figure 4.7: accuracy at inference by reduction",
        ("task", "system", *map(str, study.settings.grid)),
        tuple(rows),
        (
            "In %, on the test images, mean over seeds.",
            "Thesis, in words: Exhaustive and Prodigy stay near 90 % on CIFAR-100 up to 20; OTAS falls beyond 15; "
            "Maxprune fails at small reductions.",
        ),
    )


def figure_4_8(study: WarmupStudy) -> Sheet:
    """Fine-tuning time and storage."""
    rows = []
    for task in study.tasks:
        runs = study.of_task(task)
        for name in ("vanilla", "maxprune", "prodigy", "coverage", "exhaustive"):
            sets = [run.system(name).models for run in runs]
            seconds = [run.seconds(models) for run, models in zip(runs, sets, strict=True)]
            size = fmean(
                sum(m.bytes for m in run.models if m.reduction in s)
                for run, s in zip(runs, sets, strict=True)
            )
            picked = "; ".join(dict.fromkeys(_listed(sorted(models)) for models in sets))
            rows.append((task, SYSTEMS[name], picked, f"{fmean(seconds):.0f} s", f"{size / 1e6:.0f} MB"))
        whole = fmean(exhaustive_seconds(study, run) for run in runs)
        each = fmean(model.bytes for run in runs for model in run.models)
        count = len(study.settings.reductions)
        rows.append(
            (
                task,
                f"Exhaustive, all {count} (extrapolated)",
                "",
                f"{whole:.0f} s",
                f"{count * each / 1e6:.0f} MB",
            )
        )
    return Sheet(
        "Figure 4.8: fine-tuning cost",
        ("task", "system", "fine-tuned at", "training", "storage"),
        tuple(rows),
        (
            "Sets that differ between seeds are divided by ;.",
            "Thesis: Prodigy takes a quarter of Exhaustive's time, and 2 GB instead of 10.",
        ),
    )


def table_4_2(study: WarmupStudy) -> Sheet:
    """Prodigy without and with averaged models."""
    rows = []
    for task in study.tasks:
        runs = study.of_task(task)
        values = {
            n: [mean_over_reductions(study, run, n) for run in runs] for n in ("prodigy", "soup", "printed")
        }
        averaged = [sum("+" in recipe for recipe in run.system("soup").recipes.values()) for run in runs]
        rows.append(
            (
                task,
                Mean.of(values["prodigy"]).percent(),
                Mean.of(values["soup"]).percent(),
                _points(values["soup"], values["prodigy"]),
                f"{fmean(averaged):.1f} of {len(study.settings.grid)}",
                Mean.of(values["printed"]).percent(),
                _points(values["printed"], values["prodigy"]),
            )
        )
    return Sheet(
        "Table 4.2: the model ensemble",
        ("task", "single models", "soups", "gain", "soups accepted", "Algorithm 5 as printed", "gain"),
        tuple(rows),
        (
            "Mean over all reductions; gain in points over single models.",
            f"Thesis, in %, without and with: {PRINTED_SOUPS}.",
        ),
    )


def soup_times(study: WarmupStudy) -> Sheet:
    """A soup on demand against a batch's forward pass."""
    rows = []
    for reduction in dict.fromkeys(row.reduction for run in study.runs for row in run.soups):
        found = [row for run in study.runs for row in run.soups if row.reduction == reduction]
        soup, forward = fmean(r.soup_seconds for r in found), fmean(r.forward_seconds for r in found)
        rows.append(
            (str(reduction), f"{1e3 * soup:.1f} ms", f"{1e3 * forward:.1f} ms", f"{soup / forward:.2f}")
        )
    batch = study.runs[0].soups[0].batch
    return Sheet(
        "A soup of two models, made on demand",
        ("reduction", "soup", f"forward of {batch}", "ratio"),
        tuple(rows),
        ("Medians of interleaved rounds, mean over runs; the two models are in memory, the soup is not.",),
    )


def figure_4_9(study: WarmupStudy) -> Sheet:
    """Goodput under load."""
    rows = []
    for task, trace in _places(study):
        vanilla = _served(study, task, trace, "vanilla")
        for policy in dict.fromkeys(row.policy for run in study.runs for row in run.served):
            mine = _served(study, task, trace, policy)
            gains = [m.goodput / v.goodput - 1 for m, v in zip(mine, vanilla, strict=True)]
            change = Mean.of([100 * gain for gain in gains])
            rows.append(
                (
                    task,
                    trace,
                    LABELS[policy],
                    f"{fmean(row.goodput for row in mine):.0f}",
                    "" if policy == "vanilla" else _bracketed(change, " %"),
                    f"{100 * fmean(row.in_time for row in mine):.1f} %",
                )
            )
    return Sheet(
        "Figure 4.9: queries answered rightly in time, per minute",
        ("task", "load", "system", "per minute", "vs OTAS, no warm-up", "answered in time"),
        tuple(rows),
        (
            _served_note(study),
            "Thesis: Prodigy serves up to 36 % more than OTAS on the synthetic load, 4 to 23 % more on Azure's.",
        ),
    )


def figure_4_10(study: WarmupStudy) -> Sheet:
    """Latency under load."""
    rows = []
    for task, trace in _places(study):
        clipper = _served(study, task, trace, "clipper")
        for policy in dict.fromkeys(row.policy for run in study.runs for row in run.served):
            mine = _served(study, task, trace, policy)
            changes = [
                100 * (m.latency_ms["p95"] / c.latency_ms["p95"] - 1)
                for m, c in zip(mine, clipper, strict=True)
            ]
            rows.append(
                (
                    task,
                    trace,
                    LABELS[policy],
                    f"{fmean(row.latency_ms['p50'] for row in mine):.0f} ms",
                    f"{fmean(row.latency_ms['p95'] for row in mine):.0f} ms",
                    "" if policy == "clipper" else _bracketed(Mean.of(changes), " %"),
                    *(f"{100 * fmean(row.within[step] for row in mine):.0f} %" for step in (2, 4, 9)),
                )
            )
    return Sheet(
        "Figure 4.10: latency",
        ("task", "load", "system", "p50", "p95", "p95 vs Clipper", "within 0.3", "within 0.5", "within 1"),
        tuple(rows),
        (
            _served_note(study),
            "Percentiles are of answered queries; a query that is late before it starts is never run, so the last "
            "columns count all queries: answered within 0.3, 0.5 and 1 of the objective.",
            "Thesis: 62 % less latency than Clipper; more than 80 % of the queries within the objective, Clipper "
            "40 and 60 %.",
        ),
    )


WARMUP_TARGETS: Mapping[str, Callable[[WarmupStudy], Sheet]] = {
    "fig4.3": figure_4_3,
    "fig4.4": figure_4_4,
    "table4.1": table_4_1,
    "fig4.7": figure_4_7,
    "fig4.8": figure_4_8,
    "table4.2": table_4_2,
    "fig4.9": figure_4_9,
    "fig4.10": figure_4_10,
}


def warmup_page(study: WarmupStudy, command: str, pictures: Sequence[Path] = ()) -> str:
    """The whole study as a markdown page. pictures: in a folder beside it."""
    settings = study.settings
    versions = ", ".join(f"{name} {number}" for name, number in study.versions.items())
    intro = (
        f"`{command}` on {study.date[:10]}: {study.architecture} (served as {study.variant}), {study.hardware}, torch "
        f"threads: {study.threads}; {versions}; revision {study.git}. Seeds: {len(study.of_task(study.tasks[0]))}."
    )
    how = (
        f"Every model starts from the same pre-trained trunk and the same linear-probe head, and is fine-tuned for "
        f"{settings.epochs} epochs on {settings.train_images} training images with its reduction in the loop. Models, "
        f"planners and soups are chosen on {settings.profiling_images} profiling images; accuracies are of "
        f"{settings.test_images} test images that nothing was chosen on. So few images and epochs are what a CPU "
        "allows: they are the same for every system."
    )
    sheets = [
        summary(study),
        *(make(study) for name, make in WARMUP_TARGETS.items() if _has(study, name)),
        soup_times(study),
    ]
    parts = ["# Token-reduction warm-up on real tasks", intro, how]
    for sheet in sheets:
        parts += [f"## {sheet.title}", sheet_markdown(sheet), *sheet.notes]
    parts += [f"![{picture.stem}]({picture.parent.name}/{picture.name})" for picture in pictures]
    return "\n\n".join(parts) + "\n"


def warmup_sheet(target: str, study: WarmupStudy) -> Sheet:
    """One of WARMUP_TARGETS. Raises ResultsError for another, or where the study holds no data for it."""
    if target not in WARMUP_TARGETS:
        raise ResultsError(f"unknown target {target!r} (known: {', '.join(WARMUP_TARGETS)})")
    return WARMUP_TARGETS[target](study)


def _has(study: WarmupStudy, target: str) -> bool:
    return target != "table4.1" or any(run.blends for run in study.runs)


def _places(study: WarmupStudy) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run.task, row.trace) for run in study.runs for row in run.served))


def _served(study: WarmupStudy, task: str, trace: str, policy: str) -> list[ServedRow]:
    return [
        row for run in study.of_task(task) for row in run.served if (row.trace, row.policy) == (trace, policy)
    ]


def _served_note(study: WarmupStudy) -> str:
    return (
        f"In virtual time, {study.settings.serving_seconds:.0f} s of arrivals per seed, with batch times measured "
        f"here; objective {1e3 * study.objective:.0f} ms, which is the thesis' 100 ms stretched by how much slower "
        "this machine is, and rates shrunk by as much. Policies believe profiling accuracies; answers are as tested."
    )


def _points(values: Sequence[float], baseline: Sequence[float]) -> str:
    """Paired difference in points, empty where both are the same."""
    changes = [100 * (value - base) for value, base in zip(values, baseline, strict=True)]
    return "" if not any(changes) else _bracketed(Mean.of(changes), "")


def _bracketed(mean: Mean, unit: str) -> str:
    return f"{signed(mean.value)}{unit} [{signed(mean.low)}, {signed(mean.high)}]"


def _listed(values: Sequence[int]) -> str:
    """0..25, 30, 40: runs of three and more are shortened."""
    parts: list[list[int]] = []
    for value in values:
        if parts and parts[-1][-1] == value - 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in parts)
