"""What a light message costs a device in processor time: started cold, started warm, and by Flower's own command.

The Runtime API of Flower's SuperNode runs in this process and hands out hellos; the commands answer them, as on a
device. All ways take turns and must give the same answer. Processor time is that of the command and of everything below
it and, for the warm start, of its parent and the children of that. The memory of the warm process comes at the end.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import cast

import psutil
import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from rich.console import Console

from fedstill.common.flower_cli import environment, free_port, tool
from fedstill.edge_client.node import warm_start
from fedstill.edge_client.node.clientapp_process import NAME, install_command
from fedstill.edge_client.node.hand_over import COLD, SOCKET
from fedstill.protos.messages import Hello, HelloRequest
from fedstill.protos.records import decode, encode

RUN, NODE, SERIES = 7, 1000, 3
APP = Path(warm_start.__file__).parents[2] / "simulation" / "flower_app"
WARM_AT_ONCE = 5
"""Warm messages per turn: the clock of other processes ticks every 10 ms."""
WAYS = ("Flower's own", "cold", "warm")


class RuntimeApi:
    """A SuperNode's Runtime API for the device in ``folder``: with messages, but without a SuperLink."""

    def __init__(self, folder: Path) -> None:
        factory = NodeStateFactory(ObjectStoreFactory())
        self._state = factory.state()
        self._state.set_node_id(NODE)
        content = build_fab_from_disk(APP)
        run = Run.create_empty(RUN)
        fab_hash = self._state.store_fab(Fab("", content, {}))
        run.fab_id, run.fab_version, run.fab_hash, run.series_id = (
            "fedstill/fedstill-app",
            "0.1.0",
            fab_hash,
            SERIES,
        )
        node: UserConfig = {"partition-id": 0, "state-dir": str(folder), "name": "hall"}
        self._state.store_run(run)
        self._state.set_run_series_context(SERIES, Context(RUN, NODE, node, RecordDict(), {"run-dir": ""}))
        self.port = free_port()
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_app(factory), host="127.0.0.1", port=self.port, log_config=None, access_log=False
            )
        )
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> RuntimeApi:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def hello(self) -> list[str]:
        """Put in a message; Flower's options that name it."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
        message = Message(encode(HelloRequest("1", "{}")), NODE, "query.hello")
        message.metadata.__dict__["_message_id"] = message.object_id
        self._state.object_store.preregister(RUN, get_object_tree(message))
        for name, part in get_all_nested_objects(message).items():
            self._state.object_store.put(name, part.deflate())
        self._state.store_message(message)
        task = self._state.create_task(TaskType.CLIENT_APP, RUN)
        token = None if task is None else self._state.claim_task(task)
        where = ["--runtime-api-address", f"127.0.0.1:{self.port}", "--insecure"]
        return [*where, "--token", str(token), "--parent-pid", str(os.getpid())]

    def answers(self) -> list[Hello]:
        """Those that have come since the last call."""
        replies = self._state.get_messages_legacy(run_ids=[RUN], is_reply=True)
        return [self._inflated(reply.metadata.message_id) for reply in replies]

    def _inflated(self, identity: str) -> Hello:
        store = self._state.object_store
        trees = iterate_object_tree(store.get_object_tree(identity))
        contents = {tree.object_id: store.get(tree.object_id) or b"" for tree in trees}
        return decode(Hello, cast(Message, inflate_object_from_contents(identity, contents)).content)


class Device:
    """A folder with the agent's command and, as a context manager, its warm process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, folder / "flower" / "bin"
        install_command(self.programs)
        self.variables = environment(folder / "flower")

    def __enter__(self) -> Device:
        self.warm = subprocess.Popen(
            warm_start.command(os.getpid()), cwd=self.programs, env=self.variables, stdin=subprocess.DEVNULL
        )
        while not (self.programs / SOCKET).exists():
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.warm.kill()
        self.warm.wait()

    def command(self, way: str) -> list[str]:
        """Handles the message that Flower's options behind it name."""
        cold = [sys.executable, "-P", "-c", COLD, str(self.programs / NAME)]
        return {"Flower's own": [tool(NAME)], "cold": cold, "warm": [str(self.programs / NAME)]}[way]

    def seconds(self) -> float:
        """Of processor time, of everything that has ended below this process, and of the warm process and below it."""
        ended, warm = resource.getrusage(resource.RUSAGE_CHILDREN), psutil.Process(self.warm.pid).cpu_times()
        return float(ended.ru_utime + ended.ru_stime + sum(warm[:4]))


def main(arguments: Sequence[str]) -> None:
    """Print the medians and the memory."""
    options = _options(arguments)
    turns = 1 if options.quick else options.turns
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    with (
        tempfile.TemporaryDirectory() as folder,
        RuntimeApi(Path(folder)) as api,
        Device(Path(folder)) as device,
    ):
        for _ in range(turns):
            for way in WAYS:
                seconds = processor_time(api, device, way, WARM_AT_ONCE if way == "warm" else 1)
                spent[way].append(seconds)
        memory = kibibytes(device.warm.pid)
    console = Console(soft_wrap=True, highlight=False)
    for way, found in spent.items():
        ratio = median(mine / cold for mine, cold in zip(found, spent["cold"], strict=True))
        console.print(
            f"{way:<14} {median(found) * 1e3:6.0f} ms of processor time per hello, ratio {ratio:.3f}"
        )
    shown = ", ".join(f"{name} {size / 1024:.0f} MiB" for name, size in memory.items())
    console.print(f"the warm process: {shown}")


def processor_time(api: RuntimeApi, device: Device, way: str, count: int) -> float:
    """Seconds per message, one after the other."""
    before = device.seconds()
    for _ in range(count):
        subprocess.run(
            [*device.command(way), *api.hello()], cwd=device.folder, env=device.variables, check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    answers = api.answers()
    if answers != [Hello("hall", version("fedstill"), 0, "")] * count:
        sys.exit(f"{way}: {answers}")
    return (device.seconds() - before) / count


def kibibytes(pid: int) -> dict[str, int]:
    """Resident memory: all, the process' share of it, and what nobody else uses."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    alone = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"RSS": sizes["Rss"], "PSS": sizes["Pss"], "private": alone}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one turn")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
