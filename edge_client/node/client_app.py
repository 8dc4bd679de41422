"""The device's Flower ClientApp: five message handlers over ``device.Device``.

In Flower's deployment every message runs in a fresh process, so the light ``query.hello`` must not pay for torch:
the heavy imports are inside the heavy handlers, and everything that must last is in the device's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedstill.common.atomic_files import PRIVATE, replace_file
from fedstill.edge_client.folder import BEGUN_FILE, FORMAT_FILE, SHELF_FOLDER
from fedstill.edge_client.node.change_note import announced
from fedstill.edge_client.privacy.upload_log import note
from fedstill.edge_client.students.pointer import confirm, version_in_use
from fedstill.protos.messages import (
    EvaluationRequest,
    GraphsRequest,
    Hello,
    HelloRequest,
    InstallRequest,
    MissingDependency,
    PrototypeRequest,
)
from fedstill.protos.records import decode, encode, payload_bytes
from fedstill.protos.releases import is_older

if TYPE_CHECKING:
    from fedstill.edge_client.node.device import Device

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Who answers, with which software; and that its clips have changed, if they have and its owner allows that."""
    request = decode(HelloRequest, message.content)
    folder = _folder(context)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / FORMAT_FILE, request.clip_format.encode(), PRIVATE)
    name = str(context.node_config.get("name", f"device{_partition(context)}"))
    if request.settled:
        confirm(folder / SHELF_FOLDER)
    if request.begun:
        with suppress(OSError):  # a full disk: the device leaves early, and comes again
            (folder / BEGUN_FILE).touch()
    student = version_in_use(folder / SHELF_FOLDER)
    ours = version("fedstill")
    change = "" if is_older(request.version, ours) else announced(folder)
    reply = Hello(name, ours, _partition(context), student, change)
    if reply.change:
        try:
            note(folder, request, reply, payload_bytes(encode(reply)))
        except OSError:  # what is not in the owner's log is not sent, but the device stays in the fleet
            reply = replace(reply, change="")
    return Message(encode(reply), reply_to=message)


@app.query("prototypes")
def prototypes(message: Message, context: Context) -> Message:
    """Summarise this device's clips under the received student."""
    request = decode(PrototypeRequest, message.content)
    return _reply(message, context, request, lambda: _device(context).prototypes(request))


@app.evaluate("student")
def evaluate(message: Message, context: Context) -> Message:
    """Count how many of this device's own clips the received student gets right."""
    request = decode(EvaluationRequest, message.content)
    return _reply(message, context, request, lambda: _device(context).evaluate(request))


@app.train("install")
def install(message: Message, context: Context) -> Message:
    """Make the received student the current one, unless it fails on the canary clips."""
    request = decode(InstallRequest, message.content)
    return _reply(message, context, request, lambda: _device(context).install(request))


@app.train("graphs")
def graphs(message: Message, context: Context) -> Message:
    """Keep graphs by which this device runs students without torch."""
    request = decode(GraphsRequest, message.content)
    return _reply(message, context, request, lambda: _device(context).keep_graphs(request))


def _reply(message: Message, context: Context, request: object, answer: Callable[[], object]) -> Message:
    """The answer, or the item that the device lacks to give it; its owner's log has it before it is sent."""
    from fedstill.edge_client.students.students import NotInStore

    try:
        content = answer()
    except NotInStore as missing:
        content = MissingDependency(missing.item, missing.version)
    record = encode(content, request)
    note(_folder(context), request, content, payload_bytes(record))
    return Message(record, reply_to=message)


def _device(context: Context) -> Device:
    from fedstill.edge_client.node.device import Device
    from fedstill.edge_client.node.loading import loader

    folder = _folder(context)
    return Device(folder, loader(folder), run=str(context.run_config["run-dir"]))


def _folder(context: Context) -> Path:
    """An agent's own state folder; a simulated device's within the run."""
    own = context.node_config.get("state-dir")
    return (
        Path(str(own))
        if own
        else device_directory(Path(str(context.run_config["run-dir"])), _partition(context))
    )


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def device_directory(run: Path, partition: int) -> Path:
    """Where a simulated device keeps its clips and its outcomes."""
    return run / "devices" / str(partition)
