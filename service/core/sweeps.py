"""Sweeps: one job over many, which differ in a few fields of their spec, of which it keeps the best."""

from __future__ import annotations


def child_id(parent: str, number: int) -> str:
    """The id of a sweep's job with this number, from 0."""
    return f"{parent}.{number}"


def parent_of(job_id: str) -> str:
    """The id of the sweep that a child's id is made of."""
    return job_id.rpartition(".")[0]
