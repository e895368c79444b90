"""The API's own description (OpenAPI): FastAPI's, with errors as they are and with inference, which is not in it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.core.datatypes import DATATYPES

_PROBLEM = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "expected": {"type": "string"}, "got": {"type": "string"}},
    "required": ["path", "expected", "got"],
}
_ERROR = {
    "type": "object",
    "title": "Error",
    "description": "What was expected, what came, and where; `details` where there are several defects.",
    "properties": {
        "error": {"type": "string"},
        "details": {"type": "array", "items": _PROBLEM},
        "request_id": {"type": "string", "description": "Where the server's log tells of an unplanned error."},
    },
    "required": ["error"],
}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "boolean", "integer", "number"]}}
_TENSOR = {
    "name": {"type": "string"},
    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 64},
    "datatype": {"type": "string", "enum": list(DATATYPES)},
    "parameters": _PARAMETERS,
    "data": {"type": "array", "description": "Values in row-major order, flat or nested.", "items": {}},
}
_INPUT = {"type": "object", "properties": _TENSOR, "required": ["name", "shape", "datatype"]}
_WANTED = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
    "required": ["name"],
}
_REQUEST = {
    "type": "object",
    "title": "InferenceRequest",
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "items": _INPUT, "minItems": 1},
        "outputs": {"type": "array", "items": _WANTED},
    },
    "required": ["inputs"],
}
_RESPONSE = {
    "type": "object",
    "title": "InferenceResponse",
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _INPUT},
    },
    "required": ["model_name", "model_version", "outputs"],
}
_BINARY = {"type": "string", "format": "binary"}
_HEADER_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 0},
    "description": "Length of the JSON, which the bytes of binary tensors follow; 0 for a raw request.",
}
_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head"})


class Application(FastAPI):
    """FastAPI, whose description tells of every error's form and of the infer routes in front of it."""

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if self.openapi_schema is None:
            described = super().openapi()
            schemas = described.setdefault("components", {}).setdefault("schemas", {})
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            schemas |= {"Error": _ERROR, "InferenceRequest": _REQUEST, "InferenceResponse": _RESPONSE}
            for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
                described["paths"][path] = {"post": _inference(path)}
            for operations in described["paths"].values():
                for method in _METHODS & operations.keys():
                    _tell_errors(operations[method]["responses"])
            self.openapi_schema = described
        return self.openapi_schema


def _inference(path: str) -> dict[str, Any]:
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    return {
        "tags": ["Open Inference Protocol"],
        "summary": "Predict",
        "operationId": f"infer_{'_'.join(names)}",
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
            _HEADER_LENGTH,
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
                "application/octet-stream": {"schema": _BINARY},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/InferenceResponse"}},
                    "application/octet-stream": {"schema": _BINARY},
                },
            }
        },
    }


def _tell_errors(responses: dict[str, Any]) -> None:
    # FastAPI's own refusal, which `errors` answers with 400.
    responses.pop("422", None)
    schema = {"$ref": "#/components/schemas/Error"}
    responses["default"] = {"description": "An error", "content": {"application/json": {"schema": schema}}}
