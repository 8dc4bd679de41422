"""The Open Inference Protocol over HTTP: paths and bodies around the table of calls that gRPC uses, too.

Status codes are those that google.rpc gives its codes. Every refusal is ``{"error": "field: reason"}``.
"""

from __future__ import annotations

import asyncio
import json
import math
import zlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

import grpc
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fedstill.cloud_server.grpc.request_error import RequestError
from fedstill.cloud_server.serving.callers.call import REQUEST_ID_KEY, current
from fedstill.cloud_server.serving.callers.request_id_header import RequestIdHeader
from fedstill.cloud_server.serving.endpoints import rest_messages
from fedstill.cloud_server.serving.endpoints.grpc_methods import RETRY_KEY
from fedstill.cloud_server.serving.endpoints.open_inference import NO_LOG, NO_SHARED_MEMORY, NO_TRACE
from fedstill.cloud_server.serving.endpoints.refusals import bad, line
from fedstill.cloud_server.serving.endpoints.serving_service import Service
from fedstill.cloud_server.serving.endpoints.starting import RETRY_MS, StartProgress
from fedstill.protos import open_inference_pb2 as pb

HEADER_LENGTH = "inference-header-content-length"
CLIENT_GONE = 499
"""Nobody reads it."""
STATUS = {
    grpc.StatusCode.CANCELLED: CLIENT_GONE,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 409,  # google.rpc says 400, but the request itself is right
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
WINDOWS = {"gzip": 31, "deflate": 15}
"""Of zlib, by Content-Encoding."""
COMPRESSED_FROM = 16 * 2**10
"""Bytes of an answer; smaller ones are not worth the time."""
THREAD_FROM = 64 * 2**10
"""Bytes of JSON that are parsed beside the event loop."""
LARGEST_CALL = 2**20
"""Bytes of a body that holds no tensors."""
MODEL, VERSIONED = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
REFUSED = {
    "/v2/logging": NO_LOG,
    "/v2/trace/setting": NO_TRACE,
    f"{MODEL}/trace/setting": NO_TRACE,
    **{
        f"/v2/{kind}sharedmemory{region}/{verb}": NO_SHARED_MEMORY
        for kind in ("system", "cuda")
        for region in ("", "/region/{region}")
        for verb in ("status", "register", "unregister")
    },
}
"""Paths of Triton's that are refused, and what is said."""

Handler = Callable[[Request], Awaitable[Response]]


class RestFace:
    """The app.

    Args:
        service: None until the server is ready.
        largest: bytes of a body, also after it was unpacked.
    """

    def __init__(self, service: Callable[[], Service | None], progress: StartProgress, largest: int) -> None:
        self._service, self._progress, self._largest = service, progress, largest
        self._openapi = (files(__package__) / "openapi.json").read_bytes()

    def app(self) -> Starlette:
        """For a web server."""
        per_model = {
            "": ("GET", self._metadata),
            "/ready": ("GET", self._model_ready),
            "/config": ("GET", self._config),
            "/stats": ("GET", self._stats),
            "/infer": ("POST", self._infer),
        }
        routes = [
            Route("/openapi.json", self._openapi_file),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/health/startup", self._startup),
            Route("/v2", self._server_metadata),
            Route("/v2/", self._server_metadata),
            Route("/v2/models", self._models),
            Route("/v2/models/stats", self._stats),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            Route("/v2/repository/models/{name}/load", self._load, methods=["POST"]),
            Route("/v2/repository/models/{name}/unload", self._unload, methods=["POST"]),
            *(Route(path, _refusing(text), methods=["GET", "POST"]) for path, text in REFUSED.items()),
            *(
                Route(prefix + path, handler, methods=[method])
                for prefix in (MODEL, VERSIONED)
                for path, (method, handler) in per_model.items()
            ),
        ]
        return Starlette(
            routes=routes,
            exception_handlers={
                RequestError: _show_refusal,
                HTTPException: _show_http_error,
                Exception: _show_failure,
            },
            middleware=[
                Middleware(RequestIdHeader),
                Middleware(GZipMiddleware, minimum_size=COMPRESSED_FROM, compresslevel=1),
            ],
        )

    async def _openapi_file(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        service = self._service()
        ready = service is not None and service.ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def _startup(self, request: Request) -> Response:
        started = self._service() is not None
        return _json({"started": started}, 200 if started else 503)

    async def _model_ready(self, request: Request) -> Response:
        service, name = self._service(), request.path_params["name"]
        if service is None:
            return _json({"name": name, "ready": False}, 503)
        answer: Any = await self._call(request, "ModelReady", pb.ModelReadyRequest(**_named(request)))
        missing = not answer.ready and service.ready
        return _json({"name": name, "ready": answer.ready}, 200 if answer.ready else 404 if missing else 503)

    async def _server_metadata(self, request: Request) -> Response:
        return _shown(await self._call(request, "ServerMetadata", pb.ServerMetadataRequest()))

    async def _models(self, request: Request) -> Response:
        index: Any = await self._call(request, "RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
        return _json({"models": [one.name for one in index.models]})

    async def _metadata(self, request: Request) -> Response:
        return _shown(await self._call(request, "ModelMetadata", pb.ModelMetadataRequest(**_named(request))))

    async def _config(self, request: Request) -> Response:
        answer: Any = await self._call(request, "ModelConfig", pb.ModelConfigRequest(**_named(request)))
        return _shown(answer.config)

    async def _stats(self, request: Request) -> Response:
        return _shown(
            await self._call(request, "ModelStatistics", pb.ModelStatisticsRequest(**_named(request)))
        )

    async def _index(self, request: Request) -> Response:
        service = self._admit(request, "RepositoryIndex")
        plain = rest_messages.read_json(await self._body(request, LARGEST_CALL))
        ready = plain.get("ready", False)
        if not isinstance(ready, bool):
            raise bad("ready", "needs true or false")
        asked = pb.RepositoryIndexRequest(ready=ready)
        answer: Any = await service.calls["RepositoryIndex"].answer(asked, None)
        return _json([rest_messages.plain_message(one) for one in answer.models])

    async def _load(self, request: Request) -> Response:
        asked = pb.RepositoryModelLoadRequest(model_name=request.path_params["name"])
        return await self._change(request, "RepositoryModelLoad", asked)

    async def _unload(self, request: Request) -> Response:
        asked = pb.RepositoryModelUnloadRequest(model_name=request.path_params["name"])
        return await self._change(request, "RepositoryModelUnload", asked)

    async def _change(self, request: Request, call: str, asked: Any) -> Response:
        service = self._admit(request, call)
        rest_messages.read_load_parameters(
            rest_messages.read_json(await self._body(request, LARGEST_CALL)), asked.parameters
        )
        return _shown(await service.calls[call].answer(asked, None))

    async def _infer(self, request: Request) -> Response:
        service = self._admit(request, "ModelInfer")
        content = await self._body(request, self._largest)
        header = _header_length(request)
        named = _named(request)
        arguments = (named["name"], named.get("version", ""), content, header)
        if (len(content) if header is None else header) > THREAD_FROM:
            asked, form = await asyncio.to_thread(rest_messages.read_infer, *arguments)
        else:
            asked, form = rest_messages.read_infer(*arguments)
        answering = service.calls["ModelInfer"].answer(asked, None)
        answer: Any = await _unless_gone(request, answering)
        body, length = rest_messages.write_infer(answer, form)
        if length is None:
            return Response(body, media_type="application/json")
        headers = {HEADER_LENGTH: str(length)}
        return Response(body, media_type="application/octet-stream", headers=headers)

    def _admit(self, request: Request, call: str) -> Service:
        """Before a body is read. Raises RequestError."""
        service = self._service()
        if service is None:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "", self._progress.refusal, RETRY_MS)
        asked = service.calls[call].form
        if asked.guarded:
            peer = f"{request.client.host}:{request.client.port}" if request.client else "unknown"
            authorization = request.headers.getlist("authorization")
            current().node = service.access.check(authorization, peer, asked.operators)
        return service

    async def _call(self, request: Request, call: str, message: Message) -> Message:
        return await self._admit(request, call).calls[call].answer(message, None)

    async def _body(self, request: Request, largest: int) -> bytes:
        """Unpacked. Raises HTTPException if it is too large or packed otherwise."""
        largest = min(largest, self._largest)
        too_large = HTTPException(413, f"body: is larger than {largest} bytes")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > largest:
            raise too_large
        chunks, size = [], 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > largest:
                    raise too_large
                chunks.append(chunk)
        except ClientDisconnect:
            raise HTTPException(CLIENT_GONE, "the client has left") from None
        content = b"".join(chunks)
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding == "identity":
            return content
        if encoding not in WINDOWS:
            raise HTTPException(
                415, f"content-encoding: {encoding[:40]!r} is not one of {', '.join(WINDOWS)}"
            )
        unpacking = zlib.decompressobj(WINDOWS[encoding])
        try:
            unpacked = await asyncio.to_thread(unpacking.decompress, content, largest + 1)
        except zlib.error:
            raise bad("body", f"not {encoding}") from None
        if len(unpacked) > largest:
            raise too_large
        if not unpacking.eof:
            raise bad("body", f"not {encoding}")
        return unpacked


async def _unless_gone(request: Request, answering: Awaitable[Message]) -> Message:
    """The answer; if the client leaves before, its query is cancelled."""
    answer = asyncio.ensure_future(answering)
    leaving = asyncio.ensure_future(request.receive())  # the body was read: only the end can come
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise HTTPException(CLIENT_GONE, "the client has left")
        return answer.result()
    finally:
        answer.cancel()
        leaving.cancel()
        del answer, leaving  # a refusal would hold itself, and images with it, through this frame


def _named(request: Request) -> dict[str, str]:
    """Model and version of the path, as far as it has them."""
    return {key: request.path_params[key] for key in ("name", "version") if key in request.path_params}


def _header_length(request: Request) -> int | None:
    given = request.headers.get(HEADER_LENGTH)
    if given is None:
        return None
    if not given.isdecimal() or len(given) > 18:
        raise bad("Inference-Header-Content-Length", "needs a number of bytes")
    return int(given)


def _refusing(text: str) -> Handler:
    async def handle(request: Request) -> Response:
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, request.url.path, text)

    return handle


def _shown(message: Message) -> Response:
    return _json(rest_messages.plain_message(message))


def _json(plain: object, status: int = 200) -> Response:
    return Response(json.dumps(plain), status, media_type="application/json")


async def _show_refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestError):
        raise error
    answer = _json({"error": line(error)}, STATUS[error.code])
    if error.retry_milliseconds:
        answer.headers["retry-after"] = str(math.ceil(error.retry_milliseconds / 1e3))
        answer.headers[RETRY_KEY] = str(error.retry_milliseconds)
    if error.code is grpc.StatusCode.UNAUTHENTICATED:
        answer.headers["www-authenticate"] = "Bearer"
    return answer


async def _show_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    text = f"{request.url.path[:200]}: there is no such path" if error.status_code == 404 else error.detail
    answer = _json({"error": text}, error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _show_failure(request: Request, error: Exception) -> Response:
    answer = _json({"error": "the server failed; see its log"}, 500)
    answer.headers[REQUEST_ID_KEY] = current().request_id  # it is sent from outside of the middleware
    return answer
