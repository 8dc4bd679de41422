"""The cloud's Flower ServerApp: seed by seed, train the teacher, fill the bank, run every device's jobs.

It reads its work order from ``plan.json`` in the run directory, writes its diary to ``metrics.jsonl`` there, and
skips every job that the diary already holds, so starting it again on the same directory resumes the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedstill.cloud_server.arms import SHARED
from fedstill.cloud_server.cloud import SeedCloud
from fedstill.cloud_server.compute import use_threads
from fedstill.cloud_server.exchange import DeviceFailure, Exchange, wait_for_nodes
from fedstill.cloud_server.jobs import JobKey, PersonalisationJob
from fedstill.cloud_server.metrics import METRICS_FILE, Metrics, read_events
from fedstill.cloud_server.plan import Plan, read_plan
from fedstill.protos.messages import Hello, HelloRequest

SWEEP_VALUES: Mapping[str, tuple[float, ...]] = {
    "cluster_samples": (3, 6, 9, 12),
    "uploaded_samples": (25, 50, 100, 150),
    "compression": (0,),
}
"""Figure 5.12, Figure 5.13 and Table 5.3; a compression job evaluates the whole ladder."""
SWEEP_ARM: Mapping[str, str] = {
    "cluster_samples": "all_distill_select_cluster",
    "uploaded_samples": "all_distill_select",
    "compression": "all_distill_select_cluster",
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the whole plan."""
    plan = read_plan(Path(str(context.run_config["run-dir"])))
    metrics = Metrics(Path(plan.work))
    try:
        run_plan(plan, Exchange(grid, plan.reply_timeout), metrics)
        metrics.emit("finished")
    except Exception as error:
        metrics.emit("aborted", reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        metrics.close()


def run_plan(plan: Plan, exchange: Exchange, metrics: Metrics) -> None:
    """All seeds in turn; within a seed, ``compute.workers`` jobs at a time."""
    nodes = find_devices(plan, exchange, metrics)
    done = {_key(event) for event in read_events(Path(plan.work)) if event["event"] == "job"}
    for seed in plan.seeds:
        waiting = [key for key in job_keys(plan, seed) if key not in done]
        metrics.emit("seed", seed=seed, jobs=len(waiting))
        if waiting:
            run_seed(SeedCloud(plan, seed, metrics), waiting, nodes, exchange)


def run_seed(cloud: SeedCloud, keys: list[JobKey], nodes: Mapping[int, int], exchange: Exchange) -> None:
    """What is shared first, with all cores; then the jobs side by side, one core each."""
    use_threads(os.cpu_count() or 1)
    _ = cloud.bank, cloud.all_distill
    for arm in {key.arm: None for key in keys if key.arm in SHARED}:
        cloud.shared(arm)

    def work(key: JobKey) -> None:
        use_threads(1)
        if key.client not in nodes:
            cloud.metrics.emit("failure", **asdict(key), round=0, reason="its device never became usable")
            return
        job = PersonalisationJob(key, cloud, exchange, nodes[key.client])
        cloud.metrics.emit("job", **job.run().as_event())

    use_threads(1)
    pool = ThreadPoolExecutor(cloud.plan.compute.workers)
    try:
        for future in [pool.submit(work, key) for key in keys]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun does not begin


def job_keys(plan: Plan, seed: int) -> Iterator[JobKey]:
    """Every job of one seed, in the order of the table."""
    for client in range(plan.clients):
        yield JobKey("latency_insensitive", "teacher", client, seed)
    for scenario in plan.scenarios:
        for arm in plan.arms:
            for client in range(plan.clients):
                yield JobKey(scenario, arm, client, seed)
    if plan.seeds.index(seed) < plan.sweep_seeds:
        for sweep in plan.sweeps:
            for value in SWEEP_VALUES[sweep]:
                for client in range(plan.clients):
                    yield JobKey("latency_sensitive", SWEEP_ARM[sweep], client, seed, sweep, value)


def find_devices(plan: Plan, exchange: Exchange, metrics: Metrics) -> dict[int, int]:
    """Client number -> node id of the devices that are online, run the same fedstill and know their place.

    Raises:
        DeviceFailure: none is usable.
    """
    nodes: dict[int, int] = {}
    for node in wait_for_nodes(exchange.grid, plan.clients, plan.join_timeout):
        try:
            nodes[_introduced(exchange, node, plan.clients, nodes)] = node
        except DeviceFailure as failure:
            metrics.emit("refused", node=str(node), reason=str(failure))
    if not nodes:
        raise DeviceFailure(f"no device is usable; the reasons are in {METRICS_FILE}")
    return nodes


def _introduced(exchange: Exchange, node: int, clients: int, known: Mapping[int, int]) -> int:
    """The client number that a node may take."""
    ours = version("fedstill")
    hello, _ = exchange.ask(node, "query.hello", HelloRequest(ours), Hello)
    if hello.version != ours:
        raise DeviceFailure(f"runs fedstill {hello.version}, the cloud {ours}: install the same version")
    if not 0 <= hello.partition < clients:
        raise DeviceFailure(f"says it is client {hello.partition}; this run has clients 0 to {clients - 1}")
    if hello.partition in known:
        raise DeviceFailure(f"says it is client {hello.partition}, which another device already is")
    return hello.partition


def _key(event: Mapping[str, object]) -> JobKey:
    return JobKey(
        str(event["scenario"]),
        str(event["arm"]),
        int(str(event["client"])),
        int(str(event["seed"])),
        str(event["sweep"]),
        float(str(event["value"])),
    )
