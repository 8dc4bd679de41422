"""Chapter 4's tables and figures beside the results of ``fedstill warmup-study``, for console and docs.

Differences between systems are taken on the same images and loads, seed by seed; intervals are Student's t over seeds
(of no width for one seed). The thesis runs ViT-Base on a GPU and on finer classes, so only directions compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from fedstill.evaluation.elastic.tables import Sheet, sheet_markdown
from fedstill.evaluation.results import ResultsError
from fedstill.evaluation.serving.summary import Mean
from fedstill.evaluation.warmup.aims import aims
from fedstill.evaluation.warmup.load_tables import figure_4_9, figure_4_10
from fedstill.evaluation.warmup.means import exhaustive_seconds, mean_over_reductions, paired_points
from fedstill.evaluation.warmup.results import SYSTEMS, WarmupStudy

PRINTED_BLENDS = (
    "r10 91.41, 78.56, 47.45, 61.45; r15 91.37, 80.11, 48.98, 70.13; r20 91.08, 79.88, 54.15, 77.19; "
    "0.50r10+0.50r20 92.39, 80.07, 53.84, 74.4; 0.10r10+0.90r20 91.58, 80.45, 54.54, 77.3; "
    "0.20r10+0.80r20 91.79, 80.98, 54.43, 77.21 (CIFAR, CUB, FGVCA, SCars)"
)
PRINTED_SOUPS = (
    "CIFAR100 88.29 and 88.68, Cars 65.53 and 70.76, CUB 74.37 and 74.07, Aircraft 53.66 and 54.16"
)


def summary(study: WarmupStudy) -> Sheet:
    """The main result: mean accuracy over all reductions, and its cost."""
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
                    paired_points(means[name], means["vanilla"]),
                    paired_points(means[name], means["exhaustive"]),
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
                paired_points(values["soup"], values["prodigy"]),
                f"{fmean(averaged):.1f} of {len(study.settings.grid)}",
                Mean.of(values["printed"]).percent(),
                paired_points(values["printed"], values["prodigy"]),
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
    rows = tuple(
        (
            str(row.reduction),
            f"{1e3 * row.soup_seconds:.1f} ms",
            f"{1e3 * row.forward_seconds:.1f} ms",
            f"{row.soup_seconds / row.forward_seconds:.2f}",
        )
        for row in study.soups
    )
    return Sheet(
        "A soup of two models, made on demand",
        ("reduction", "soup", f"forward of {study.soups[0].batch}", "ratio"),
        rows,
        ("Medians of interleaved rounds; the two models are in memory, the soup is not.",),
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
        aims(study),
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
    """One of WARMUP_TARGETS. Raises ResultsError for another, or if the study holds no data for it."""
    if target not in WARMUP_TARGETS:
        raise ResultsError(f"unknown target {target!r} (known: {', '.join(WARMUP_TARGETS)})")
    return WARMUP_TARGETS[target](study)


def _has(study: WarmupStudy, target: str) -> bool:
    return target != "table4.1" or any(run.blends for run in study.runs)


def _listed(values: Sequence[int]) -> str:
    """0..25, 30, 40: runs of three and more are shortened."""
    parts: list[list[int]] = []
    for value in values:
        if parts and parts[-1][-1] == value - 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in parts)
