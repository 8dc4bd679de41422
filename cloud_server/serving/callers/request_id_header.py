"""The HTTP side of request ids: a call begins with its header, and every answer says its id."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedstill.cloud_server.serving.callers.call import REQUEST_ID_KEY, TRACE_KEYS, begin

NAME = REQUEST_ID_KEY.encode()


class RequestIdHeader:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = next((value for name, value in scope["headers"] if name == NAME), b"")
        trace = {
            key: value.decode("latin-1")
            for key in TRACE_KEYS
            for name, value in scope["headers"]
            if name == key.encode()
        }
        call = begin(header.decode("latin-1"), trace)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (NAME, call.request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)
