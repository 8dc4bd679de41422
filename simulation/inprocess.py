"""Flower without Flower's processes: the real ServerApp and ClientApp over a Grid inside this process.

For debugging (``--engine inprocess``) and tests: breakpoints work, nothing is started, and every message still goes
through Flower's own serialisation, so that an unsendable message fails here too. ``TaskIdentity`` and the inflate
helpers are internal to flwr, hence the pin ``flwr>=1.41,<1.42``.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedstill.common.errors import RunError

CLOUD = 1
RUN = 7
HANDLER_RAISED, NODE_UNAVAILABLE = 2, 5
LOG_FILE = "inprocess.log"


class InProcessGrid(Grid):
    """A grid whose nodes are contexts of one ClientApp, called as soon as a message is pushed.

    ``dead`` nodes answer with Flower's "unavailable" error, ``silent`` ones never answer.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: int,
        run_config: Mapping[str, str],
        *,
        dead: Iterable[int] = (),
        silent: Iterable[int] = (),
    ) -> None:
        self._app, self._dead, self._silent = client_app, set(dead), set(silent)
        self._contexts = {
            _node_id(index): Context(
                RUN, _node_id(index), {"partition-id": index}, RecordDict(), dict(run_config)
            )
            for index in range(nodes)
        }
        self._replies: dict[str, Message] = {}
        self.outbound: list[Message] = []
        """Every reply that a device sent, for contract tests."""
        _become(CLOUD)

    def set_run(self, run: Run) -> None:
        """Nothing to set: there is only one run."""

    @property
    def run(self) -> Run:
        raise NotImplementedError("the in-process grid has no Flower run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(one) for one in message_ids if one in self._replies]

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        sent = _over_the_wire(message)
        identity, node = sent.metadata.message_id, message.metadata.dst_node_id
        if _index(node) in self._silent:
            return identity
        if _index(node) in self._dead:
            reply = Message(Error(NODE_UNAVAILABLE, "Node Unavailable"), reply_to=sent)
        else:
            reply = self._answer(sent, node)
            self.outbound.append(reply)
        self._replies[identity] = _over_the_wire(reply)
        return identity

    def _answer(self, sent: Message, node: int) -> Message:
        _become(node)
        try:
            return self._app(sent, self._contexts[node])
        except Exception as error:  # the same shape as Flower's deployment runtime
            return Message(Error(HANDLER_RAISED, f"{type(error)}:<'{error}'>"), reply_to=sent)
        finally:
            _become(CLOUD)


def run_inprocess(run_dir: Path, devices: int) -> None:
    """Run the whole plan of ``run_dir`` in this process."""
    from fedstill.cloud_server.federation.server_app import app as server_app
    from fedstill.edge_client.node.client_app import app as client_app

    run_config = {"run-dir": str(run_dir)}
    grid = InProcessGrid(client_app, devices, run_config)
    try:
        server_app(grid, Context(RUN, CLOUD, {}, RecordDict(), dict(run_config)))
    except Exception as error:
        (run_dir / LOG_FILE).write_text(traceback.format_exc())
        raise RunError(f"{error}; see {run_dir / LOG_FILE}") from error


def _node_id(index: int) -> int:
    return 1000 + index


def _index(node: int) -> int:
    return node - 1000


def _become(node_id: int) -> None:
    """Flower needs an identity per process before it can make messages."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, node_id, 1


def _over_the_wire(message: Message) -> Message:
    identity = message.object_id
    blobs = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    copy = cast(Message, inflate_object_from_contents(identity, blobs))
    copy.metadata.__dict__["_message_id"] = identity
    return copy
