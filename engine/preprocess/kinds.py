"""Kinds of values that steps take and give."""

from __future__ import annotations

from typing import Literal

Kind = Literal["texts", "whole numbers", "numbers"]
"""Whole numbers are numbers, too."""
