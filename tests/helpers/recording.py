"""A grid that remembers what devices were asked and what they sent: a packed upload is read with its request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict

from fedstill.protos.messages import PrototypeRequest, PrototypeUpload
from fedstill.protos.records import decode, encode, payload_bytes, plain_records
from fedstill.simulation.inprocess import InProcessGrid

PROTOTYPES = "query.prototypes"


@dataclass(frozen=True)
class Reply:
    """One reply of a device: ``sent`` as it travelled, ``content`` with every value in a field of its own."""

    action: str
    node: int
    sent: RecordDict
    content: RecordDict


class RecordingGrid(InProcessGrid):
    """Use ``replies`` for what devices sent."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked: dict[str, PrototypeRequest] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            (identity,) = super().push_messages([message])
            if message.metadata.message_type == PROTOTYPES:
                self.asked[identity] = decode(PrototypeRequest, message.content)
            yield identity

    def replies(self) -> list[Reply]:
        return [self._readable(message) for message in self.outbound]

    def _readable(self, message: Message) -> Reply:
        action, sent = message.metadata.message_type, message.content
        content = sent
        if action == PROTOTYPES:
            asked = self.asked[message.metadata.reply_to_message_id]
            upload = decode(PrototypeUpload, sent, asked)
            again = encode(upload, asked)
            assert again.object_id == sent.object_id, "an upload holds more than can be read of it"
            assert payload_bytes(again) == payload_bytes(sent)
            content = plain_records(upload)
        return Reply(action, message.metadata.src_node_id, sent, content)
