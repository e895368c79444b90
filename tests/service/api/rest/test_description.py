"""The API's own description: what schemathesis and generators of clients read."""

from __future__ import annotations

from unittest.mock import Mock

from service.api.rest.app import create_app


def test_errors_and_inference_are_described():
    """Every operation tells the form of its errors, which FastAPI's own never is; the infer routes are there."""
    described = create_app(Mock(), version="0").openapi()
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        assert set(described["paths"][path]["post"]["requestBody"]["content"]) == {
            "application/json",
            "application/octet-stream",
        }
    for operations in described["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            content = operation["responses"]["default"]["content"]
            assert content == {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    assert "HTTPValidationError" not in described["components"]["schemas"]
