"""The cloud's Flower ServerApp: seed by seed, train the teacher, fill the bank, run every device's jobs.

It reads its run plan from ``plan.json`` in the run directory, writes its event log to ``metrics.jsonl`` there, and
skips everything that the journal already holds. So starting it again on the same directory resumes the run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedstill.cloud_server.distillation.arms import SHARED, arm_of, may_ask_summary
from fedstill.cloud_server.distillation.compute import use_threads
from fedstill.cloud_server.distillation.rounds import DeviceFailure
from fedstill.cloud_server.distillation.run_plan import RunPlan, read_plan
from fedstill.cloud_server.federation.cohorts import open_cohorts
from fedstill.cloud_server.federation.device_line import DeviceLine
from fedstill.cloud_server.federation.exchange import DeviceLost, Exchange
from fedstill.cloud_server.federation.jobs import PersonalisationJob
from fedstill.cloud_server.federation.node_registry import NodeRegistry
from fedstill.cloud_server.federation.seed_state import GENERIC, SeedCloud
from fedstill.cloud_server.federation.service import FleetService
from fedstill.cloud_server.federation.slots import ComputeSlots, Stopped
from fedstill.cloud_server.journal.event_log import METRICS_FILE, MOST_BYTES, Metrics
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.cloud_server.journal.journal import Journal, open_journal
from fedstill.common.cores import usable_cores
from fedstill.common.run_layout import LOOKED_FILE
from fedstill.datasets.audiovisual.clip_format import ClipFormat, format_to_json
from fedstill.datasets.audiovisual.store import open_store

SWEEP_VALUES: Mapping[str, tuple[float, ...]] = {
    "cluster_samples": (3, 6, 9, 12),
    "uploaded_samples": (25, 50, 100, 150),
    "compression": (0,),
}
"""Figure 5.12, Figure 5.13 and Table 5.3; a compression job evaluates all levels."""
SWEEP_ARM: Mapping[str, str] = {
    "cluster_samples": "all_distill_select_cluster",
    "uploaded_samples": "all_distill_select",
    "compression": "all_distill_select_cluster",
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the whole plan, or serve for as long as this process lives."""
    plan = read_plan(Path(str(context.run_config["run-dir"])))
    metrics = Metrics(Path(plan.work), MOST_BYTES if plan.service else 0)
    exchange = Exchange(grid, plan.reply_timeout)
    try:
        if plan.service:
            run_service(plan, exchange, metrics, threading.Event())
        else:
            run_plan(plan, exchange, metrics)
        metrics.emit("finished")
    except Exception as error:
        metrics.emit("aborted", reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        metrics.close()


def run_plan(plan: RunPlan, exchange: Exchange, metrics: Metrics) -> None:
    """All seeds in turn; within a seed every device is served on its own.

    Raises:
        DeviceFailure: there was no usable device.
    """
    journal = open_journal(Path(plan.work), plan.journal)
    done = {JobKey.of(record) for record in journal.jobs()}
    with _node_registry(plan, exchange, journal, metrics) as node_registry:
        for seed in plan.seeds:
            waiting = [key for key in job_keys(plan, seed) if key not in done]
            metrics.emit("seed", seed=seed, jobs=len(waiting))
            if waiting:
                run_seed(SeedCloud(plan, seed, metrics), waiting, exchange, node_registry, journal)
            if waiting and not node_registry.met:
                raise DeviceFailure(f"no device was usable; the reasons are in {METRICS_FILE}")
    journal.close()


def run_service(plan: RunPlan, exchange: Exchange, metrics: Metrics, stop: threading.Event) -> None:
    """Give every device its student whenever it needs one, until ``stop`` is set."""
    journal = open_journal(Path(plan.work), plan.journal)
    with _node_registry(plan, exchange, journal, metrics) as node_registry:
        cloud = cloud_of_service(plan, journal, metrics)
        FleetService(cloud, exchange, node_registry, journal, metrics).run(stop)
    journal.close()


def cloud_of_service(plan: RunPlan, journal: Journal, metrics: Metrics) -> SeedCloud:
    """The shared models of the plan's teacher, made if they are not there; the journal knows it from now on."""
    cloud = SeedCloud(plan, plan.seeds[0], metrics)
    make_shared(cloud, plan.arms[:1])
    if journal.teachers.note(plan.teacher_number, cloud.bank.version):
        metrics.emit("teacher_ready", number=plan.teacher_number, digest=cloud.bank.version)
    return cloud


def _node_registry(plan: RunPlan, exchange: Exchange, journal: Journal, metrics: Metrics) -> NodeRegistry:
    public = open_store(Path(plan.public))
    clips = format_to_json(
        ClipFormat(public.class_names, public.audio_spec, public.frame_spec, public.audio.shape[-1])
    )
    looked = Path(plan.work) / LOOKED_FILE
    registry = NodeRegistry(exchange, plan.clients, journal, metrics, clips, plan.devices, looked)
    if in_order(exchange.grid):
        exchange.probe = registry.greeting
    return registry


def in_order(grid: Grid) -> bool:
    """Whether nodes take their messages one by one, the oldest first: SuperNodes do, simulated nodes do not."""
    return type(grid).__name__ == "HttpGrid"  # by name: a simulation need not import it, which takes a second


def make_shared(cloud: SeedCloud, arms: Iterable[str]) -> None:
    """Make the models that all devices share, with all cores; jobs take one core each afterwards."""
    use_threads(usable_cores())
    _ = cloud.bank, cloud.all_distill
    for arm in (arm_of(name, cloud.plan) for name in dict.fromkeys(arms)):
        if arm.name in SHARED:
            cloud.shared(arm.name)
        if arm.class_mix or arm.personal:
            cloud.shared(GENERIC)
            _ = may_ask_summary(arm, cloud.plan) and cloud.class_mixes
    use_threads(1)


def run_seed(
    cloud: SeedCloud, keys: list[JobKey], exchange: Exchange, node_registry: NodeRegistry, journal: Journal
) -> None:
    """First the shared models, with all cores; then every device's jobs in turn, the devices in parallel.

    ``compute.workers`` jobs train at the same time, one core each; a job that waits for its device does not count.
    """
    plan = cloud.plan
    make_shared(cloud, (key.arm for key in keys))
    slots = ComputeSlots(plan.compute.workers)
    cohorts = open_cohorts(cloud)

    def serve(client: int) -> None:
        use_threads(1)
        line = DeviceLine(exchange, node_registry, client, plan.reply_timeout)
        jobs = [
            PersonalisationJob(key, cloud, line, journal, slots, cohorts)
            for key in keys
            if key.client == client
        ]
        try:
            node_registry.node(client, plan.join_timeout)
        except DeviceLost:
            for job in jobs:
                job.failed(0, "its device never became usable")
            return
        for job in jobs:
            try:
                cloud.metrics.emit("job", **job.run().as_event())
            except Stopped:
                return

    clients = sorted({key.client for key in keys})
    pool = ThreadPoolExecutor(len(clients))
    try:
        for future in as_completed([pool.submit(serve, client) for client in clients]):
            future.result()
    finally:
        slots.stop()  # after an error or Ctrl-C, jobs end where they wait, and none begins
        pool.shutdown(cancel_futures=True)


def job_keys(plan: RunPlan, seed: int) -> Iterator[JobKey]:
    """Every job of one seed, in the order of the table."""
    for client in range(plan.clients if plan.teacher_reference else 0):
        yield JobKey("latency_insensitive", "teacher", client, seed)
    for scenario in plan.scenarios:
        for arm in plan.arms:
            for client in range(plan.clients):
                if plan.wants(arm, client, seed):
                    yield JobKey(scenario, arm, client, seed)
    if plan.seeds.index(seed) < plan.sweep_seeds:
        for sweep in plan.sweeps:
            for value in SWEEP_VALUES[sweep]:
                for client in range(plan.clients):
                    yield JobKey("latency_sensitive", SWEEP_ARM[sweep], client, seed, sweep, value)
