"""What every gRPC method of the serving tier does around its answer: name the call, admit the caller, parse, turn
refusals into codes.

Requests are parsed here and not by gRPC: only those of callers who may ask, since a message can take fifty times its
bytes, and bytes that are not a request get an answer that says so.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from fedstill.cloud_server.auth.authenticator import Context
from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.callers.call import REQUEST_ID_KEY, TRACE_KEYS, Call, begin, current
from fedstill.cloud_server.serving.endpoints.access_policy import AccessPolicy
from fedstill.cloud_server.serving.endpoints.open_inference import Answer
from fedstill.cloud_server.serving.endpoints.refusals import bad, line

RETRY_KEY = "retry-after-ms"


def parsed(kind: type[Message], content: bytes) -> Message:
    """The message. Raises RequestError for bytes that are none of this kind."""
    try:
        return kind.FromString(content)
    except DecodeError:
        raise bad("message", f"not a {kind.DESCRIPTOR.name}") from None


def values_of(context: Context, name: str) -> list[str]:
    """All values of that name in a call's metadata."""
    return [str(value) for key, value in context.invocation_metadata() or () if key == name]


def begin_call(context: Context) -> Call:
    """The call of this task from now on."""
    trace = {key: values[0] for key in TRACE_KEYS if (values := values_of(context, key))}
    return begin(next(iter(values_of(context, REQUEST_ID_KEY)), ""), trace)


def admit(access: AccessPolicy, context: Context, operators: bool) -> None:
    """Raises RequestError for a caller who may not."""
    current().node = access.check(values_of(context, "authorization"), context.peer(), operators)


def unary(
    access: AccessPolicy, kind: type[Message], answer: Answer, guarded: bool = True, operators: bool = False
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of one request and one response."""

    async def handle(content: bytes, context: Context) -> Message:
        call = begin_call(context)
        try:
            if guarded:
                admit(access, context, operators)
            made = await answer(parsed(kind, content), context.time_remaining())
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            return made
        except RequestError as error:
            code, text, retry = error.code, line(error), error.retry_milliseconds
        # gRPC keeps what abort raises, and with it this frame and an error that is being handled, until the garbage
        # collector comes by: neither may hold an image, or a burst of refusals costs hundreds of megabytes.
        content = b""
        trailing = ((REQUEST_ID_KEY, call.request_id), *(((RETRY_KEY, str(retry)),) if retry else ()))
        await context.abort(code, text, trailing)
        raise AssertionError("abort has raised already")

    return grpc.unary_unary_rpc_method_handler(handle, response_serializer=serialised)


def serialised(message: Message) -> bytes:
    """The bytes of a response."""
    return message.SerializeToString()
