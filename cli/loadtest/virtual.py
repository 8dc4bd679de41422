"""``fedstill loadtest virtual``: policies serve loads in virtual time, with the times of a profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.cli.loadtest.options import (
    Compress,
    Equal,
    Load,
    Markdown,
    Out,
    Rate,
    Seconds,
    Seeds,
    Trace,
    data_folder,
    find_profile,
    load_factors,
    names,
    run_and_save,
)
from fedstill.cli.shared.console import typed_command
from fedstill.cli.shared.progress import step_bar

if TYPE_CHECKING:
    from fedstill.evaluation.serving.results import ServingResults

STANDARD_POLICIES = "pets,infaas,tome5,tome10,tome15,tome20,vpt2,vpt4,vpt8,clipper,slackfit,faithful,fedstill"


def virtual(
    profile: Annotated[
        str, typer.Option(help="thesis (the engine of its chapter 3, OTAS), or a profile in JSON.")
    ] = "thesis",
    trace: Trace = "synthetic",
    policies: Annotated[
        str,
        typer.Option(
            help="With commas; otas is the same as faithful. For a profile of `fedstill warmup` also vanilla, "
            "maxprune and prodigy."
        ),
    ] = STANDARD_POLICIES,
    load: Load = "1.0",
    seeds: Seeds = 5,
    seconds: Seconds = 1800.0,
    rate: Rate = None,
    compress: Compress = 1.0,
    equal: Equal = False,
    jitter: Annotated[
        float, typer.Option(help="Standard deviation of the log of a batch's time around the profile.")
    ] = 0.0,
    load_seconds: Annotated[
        float | None, typer.Option(help="How long INFaaS loads a model, instead of the profile's times.")
    ] = None,
    out: Out = None,
    markdown: Markdown = None,
) -> None:
    """Compare policies on the same loads in virtual time: no GPU, no model, no waiting."""

    def run() -> ServingResults:
        from dataclasses import replace

        from fedstill.cloud_server.serving.policies.registry import policy_id
        from fedstill.evaluation.serving.virtual import LoadTest, run_virtual

        chosen = tuple(policy_id(name) for name in names(policies))
        factors = load_factors(load)
        test = LoadTest(names(trace), chosen, factors, seeds, seconds, rate, compress, jitter, equal)
        known = find_profile(profile)
        if load_seconds is not None:
            variants = tuple(replace(one, load_seconds=load_seconds) for one in known.variants)
            known = replace(known, variants=variants)
        with step_bar("loadtest", test.loads_in_all * (1 + len(chosen))) as begin:
            return run_virtual(test, known, data_folder(), typed_command(), begin)

    run_and_save(run, out, markdown)
