from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.core.limits import Limits
from service.core.types import ServingConfig
from service.settings import Settings, unknown_variables

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/settings.md").read_text()


def rows() -> list[str]:
    """The table's row for every setting, as it must stand in docs/settings.md."""
    found = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{_shown(field.default)}`"
        meaning = " ".join((field.description or "").split())
        found.append(f"| `AXON_{name.upper()}` | {default} | {meaning} |")
    return found


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return str(list(default)).replace("'", '"')
    return str(int(default)) if isinstance(default, float) and default.is_integer() else str(default)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch):
    """No settings from outside."""
    for name in ("REDIS_URL", "AXON_REDIS_URL", "AXON_URL", "AXON_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("row", rows())
def test_every_setting_is_documented(row):
    """docs/settings.md has each setting's name, default and meaning as the code has them."""
    assert row in DOCUMENT


def test_no_setting_is_documented_that_does_not_exist():
    """The document lists nothing else."""
    assert DOCUMENT.count("| `AXON_") == len(Settings.model_fields)


def test_environment_is_read_with_the_prefix(monkeypatch):
    """AXON_ variables fill the fields; options given win over them."""
    monkeypatch.setenv("AXON_HTTP_PORT", "9000")
    monkeypatch.setenv("AXON_WORKER_TAGS", '["gpu", "cpu"]')
    settings = Settings(grpc_port=0)
    assert (settings.http_port, settings.grpc_port, settings.worker_tags) == (9000, 0, ("gpu", "cpu"))
    assert Settings(http_port=1).http_port == 1


def test_redis_url_is_honoured_behind_our_own(monkeypatch):
    """REDIS_URL names the queue unless AXON_REDIS_URL does."""
    assert Settings().redis_url is None
    monkeypatch.setenv("REDIS_URL", "redis://a")
    assert Settings().redis_url == "redis://a"
    monkeypatch.setenv("AXON_REDIS_URL", "redis://b")
    assert Settings().redis_url == "redis://b"


def test_defaults_are_those_of_the_core_and_local():
    """Settings do not repeat the core's numbers with others, and nothing listens beyond this machine."""
    settings = Settings()
    assert settings.limits() == Limits()
    assert settings.serving() == ServingConfig()
    assert settings.host == "127.0.0.1"


def test_settings_are_immutable_and_strict(monkeypatch):
    """A setting cannot be changed later; a wrong value names the setting."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().http_port = 1  # type: ignore[misc]
    monkeypatch.setenv("AXON_HTTP_PORT", "70000")
    with pytest.raises(ValidationError, match="http_port"):
        Settings()


def test_misspelt_variable_is_found(monkeypatch):
    """A variable with the prefix that is no setting is told."""
    monkeypatch.setenv("AXON_HTPP_PORT", "1")
    monkeypatch.setenv("AXON_URL", "http://x")
    assert unknown_variables() == ["AXON_HTPP_PORT"]
