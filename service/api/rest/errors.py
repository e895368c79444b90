"""Errors over HTTP: `{"error": "..."}` with Content-Type exactly `application/json`, for every reply but the 2xx."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.status import Failure, failure_of
from service.core.errors import InvalidRequest, Problem, ServiceError, shown

Headers = list[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")


def error_body(failure: Failure) -> bytes:
    """`{"error": text}`, with `details` of several problems and the `request_id` of a log entry where there are any."""
    body: dict[str, Any] = {"error": failure.message}
    if failure.problems:
        body["details"] = [{"path": each.path, "expected": each.expected, "got": each.got} for each in failure.problems]
    if failure.request_id is not None:
        body["request_id"] = failure.request_id
    return orjson.dumps(_encodable(body))


def error_headers(failure: Failure) -> Headers:
    """Content-Type, Retry-After where a retry is useful, Upload-Offset where an upload goes on.

    HTTP wants whole seconds; several SDKs also read `retry-after-ms`, and rather.
    """
    headers = [JSON_TYPE]
    if failure.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % failure.retry_after_seconds))
        headers.append((b"retry-after-ms", b"%d" % failure.retry_after_ms))
    if failure.offset is not None:
        headers.append((b"upload-offset", b"%d" % failure.offset))
    return headers


def error_response(error: BaseException) -> Response:
    """The reply to a request that raised `error`."""
    failure = failure_of(error)
    headers = {name.decode(): value.decode() for name, value in error_headers(failure)}
    return Response(error_body(failure), failure.status.http, headers)


def install(app: FastAPI) -> None:
    """Make `app` answer every error in the protocol's form: the core's, FastAPI's own, unknown paths and methods."""

    async def any_error(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problems = [
            Problem(".".join(map(str, each["loc"])), str(each["msg"]), shown(each.get("input")))
            for each in error.errors()
        ]
        return error_response(InvalidRequest.from_problems("request", problems))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = error.detail
        if error.status_code == HTTPStatus.NOT_FOUND and message == HTTPStatus.NOT_FOUND.phrase:
            message = f"no such path: {request.url.path[:200]}"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"method {request.method} is not allowed on {request.url.path[:200]}"
        body = orjson.dumps(_encodable({"error": message}))
        return Response(body, error.status_code, dict(error.headers or {}), media_type="application/json")

    app.add_exception_handler(Exception, any_error)
    app.add_exception_handler(ServiceError, any_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)


def _encodable(body: dict[str, Any]) -> dict[str, Any]:
    """`body` with lone surrogates, which a client's JSON may hold and UTF-8 may not, replaced."""
    body["error"] = body["error"].encode("utf-8", "replace").decode()
    for each in body.get("details", ()):
        each.update({key: value.encode("utf-8", "replace").decode() for key, value in each.items()})
    return body
