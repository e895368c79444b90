"""schemathesis on our own description: what it allows and what it forbids is sent; answers must be as it says."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.core.failures import FailureGroup

from tests.hostile.findings import Findings, check_after
from tests.hostile.server import MODEL, SPARE, Target

ALLOWED_5XX = {501, 503}
"""What this server does not offer, and a queue or model that is away."""
TIMEOUT_S = 30.0
schemathesis.serializer.alias("application/partial-upload", "application/octet-stream")
CHANGES = {"put", "post", "patch", "delete"}


def sweep(target: Target, examples: int, seed: int = 0) -> Findings:
    """`examples` requests per operation, kind of data and round; every operation of the description."""
    findings = Findings()
    target.right()
    before = target.footprint()
    schema: Any = schemathesis.openapi.from_url(f"http://{target.host}:{target.http_port}/openapi.json")
    with requests.Session() as session:
        for operation in _operations(schema):
            for mode in _modes(operation):
                _explore(operation, mode, session, findings, examples, seed)
    check_after(target, before, findings, lambda now: now.descriptors <= before.descriptors + 4)
    return findings


def _operations(schema: Any) -> Iterator[Any]:
    for found in schema.get_all_operations():
        yield found.ok()


def _modes(operation: Any) -> list[GenerationMode]:
    """Where only a path takes something, every text is right: there is nothing to forbid."""
    deniable = bool(operation.body) or bool(operation.query) or bool(operation.headers)
    return [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if deniable else [GenerationMode.POSITIVE]


def _explore(
    operation: Any, mode: GenerationMode, session: requests.Session, findings: Findings, examples: int, seed: int
) -> None:
    checks = [CHECKS.get_one(name) for name in ("response_schema_conformance", "content_type_conformance")]
    label = f"{operation.method.upper()} {operation.path}"
    problems: dict[str, str] = {}

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        derandomize=True,
    )
    @given(operation.as_strategy(generation_mode=mode), st.sampled_from([MODEL, SPARE, None]), st.integers(seed, seed))
    def send(case: Case, name: str | None, _: int) -> None:
        if name is not None and "name" in case.path_parameters and "{name}" in operation.path:
            case.path_parameters["name"] = SPARE if operation.method.lower() in CHANGES else name
        response = case.call(session=session, timeout=TIMEOUT_S)
        findings.cases[mode.value] += 1
        findings.answers[str(response.status_code)] += 1
        if response.status_code >= 500 and response.status_code not in ALLOWED_5XX:
            problems["5xx"] = f"{response.status_code}: {response.text[:200]} for {case.as_curl_command()[:400]}"
        try:
            case.validate_response(response, checks=checks)
        except FailureGroup as group:
            for failure in group.exceptions:
                problems[type(failure).__name__] = f"{failure} for {case.as_curl_command()[:300]}"[:1200]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generators warn of their own inputs
        try:
            send()
        except Unsatisfiable:
            return  # the description allows anything here
        except Exception as error:
            problems["error"] = f"{type(error).__name__}: {error}"[:600]
    findings.bad += [f"{label} ({mode.value}): {problem}" for problem in problems.values()]
