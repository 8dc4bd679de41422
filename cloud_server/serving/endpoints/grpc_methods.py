"""What every gRPC method of the serving tier does around its answer: parse, admit the caller, turn refusals into codes.

Requests are parsed here and not by gRPC, so that bytes that are not a request get an answer that says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from fedstill.cloud_server.auth.authenticator import Context
from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.refusals import bad, line

RETRY_KEY = "retry-after-ms"

Answer = Callable[[Any, float | None], Awaitable[Message]]
"""Request and seconds that are left of the call -> response. Raises RequestError."""


def parser(kind: type[Message]) -> Callable[[bytes], Message | None]:
    """A parser that returns None for bytes that are no such message."""

    def parse(content: bytes) -> Message | None:
        try:
            return kind.FromString(content)
        except DecodeError:
            return None

    return parse


def no_message(kind: type[Message]) -> RequestError:
    """The refusal of bytes that are no such message."""
    return bad("message", f"not a {kind.DESCRIPTOR.name}")


def admit(access: AccessPolicy, context: Context, operators: bool) -> None:
    """Raises RequestError for a caller who may not."""
    metadata = context.invocation_metadata() or ()
    access.check([str(value) for key, value in metadata if key == "authorization"], context.peer(), operators)


def unary(
    access: AccessPolicy, kind: type[Message], answer: Answer, guarded: bool = True, operators: bool = False
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of one request and one response."""

    async def handle(request: Message | None, context: Context) -> Message:
        try:
            if guarded:
                admit(access, context, operators)
            if request is None:
                raise no_message(kind)
            return await answer(request, context.time_remaining())
        except RequestError as error:
            code, text, retry = error.code, line(error), error.retry_milliseconds
        # gRPC keeps what abort raises, and with it this frame and an error that is being handled, until the garbage
        # collector comes by: neither may hold an image, or a burst of refusals costs hundreds of megabytes.
        request = None
        await context.abort(code, text, ((RETRY_KEY, str(retry)),) if retry else ())
        raise AssertionError("abort has raised already")

    return grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=parser(kind), response_serializer=serialised
    )


def serialised(message: Message) -> bytes:
    """The bytes of a response."""
    return message.SerializeToString()
