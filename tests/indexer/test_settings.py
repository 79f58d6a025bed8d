"""Tests of reading settings from the environment."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest
from pydantic import ValidationError

from indexer.errors import InvalidRequest, InvalidSetting
from indexer.gallery.database import migrate, open_database
from indexer.settings import PREFIX, Settings, read_settings
from indexer.types import Precision


def test_defaults_without_environment() -> None:
    settings = read_settings({})
    assert settings.home == Path(platformdirs.user_data_dir("whosthere", appauthor=False))
    assert settings.database_url == f"sqlite:///{settings.home / 'whosthere.db'}"
    assert settings.model == ""
    assert settings.precision is Precision.NATIVE
    assert settings.threads == 0
    assert settings.fpir == 0.01
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_settings_are_read_from_environment(tmp_path: Path) -> None:
    settings = read_settings(
        {
            "WHOSTHERE_HOME": str(tmp_path),
            "WHOSTHERE_PRECISION": "float32",
            "WHOSTHERE_THREADS": "3",
            "WHOSTHERE_FPIR": "0.001",
            "WHOSTHERE_MAX_IMAGE_BYTES": "4096",
            "PATH": "/bin",
            "OTHER_PORT": "1",
        }
    )
    assert settings.home == tmp_path
    assert settings.precision is Precision.FLOAT32
    assert (settings.threads, settings.fpir, settings.max_image_bytes) == (3, 0.001, 4096)
    assert settings.database_url == f"sqlite:///{tmp_path / 'whosthere.db'}"
    assert settings.models_folder == tmp_path / "models"
    assert settings.indexes_folder == tmp_path / "indexes"


@pytest.mark.parametrize("name", ["what?", "no#1", "50%", "%41", "a b", "?mode=memory", "é:;@&=+"])
def test_any_path_can_be_the_data_folder(tmp_path: Path, name: str) -> None:
    engine = open_database(read_settings({"WHOSTHERE_HOME": str(tmp_path / name)}).database_url)
    migrate(engine)
    engine.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "whosthere.db").is_file()


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOSTHERE_PORT", "1234")
    assert read_settings().port == 1234
    assert read_settings({}).port == 8000
    assert read_settings({"WHOSTHERE_PORT": "99"}).port == 99


def test_database_url_is_not_changed(tmp_path: Path) -> None:
    url = "postgresql://me:p%40ss@db/x"
    assert read_settings({"WHOSTHERE_DATABASE_URL": url, "WHOSTHERE_HOME": str(tmp_path)}).database_url == url


def test_given_values_take_precedence(tmp_path: Path) -> None:
    environment = {"WHOSTHERE_HOME": "/elsewhere", "WHOSTHERE_PORT": "1", "WHOSTHERE_HOST": "::1"}
    settings = read_settings(environment, home=tmp_path, port=2, host=None)
    assert (settings.home, settings.port, settings.host) == (tmp_path, 2, "::1")
    assert settings.database_url == f"sqlite:///{tmp_path / 'whosthere.db'}"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("WHOSTHERE_DATABASE", "WHOSTHERE_DATABASE_URL"),
        ("WHOSTHERE_THREAD", "WHOSTHERE_THREADS"),
        ("WHOSTHERE_MAX_IMAGE_PIXEL", "WHOSTHERE_MAX_IMAGE_PIXELS"),
        ("WHOSTHERE_FPR", "WHOSTHERE_FPIR"),
    ],
)
def test_unknown_variable_suggests_the_right_name(wrong: str, right: str) -> None:
    with pytest.raises(InvalidSetting, match=f"no setting {wrong}; did you mean {right}\\?$") as caught:
        read_settings({wrong: "secret"})
    assert caught.value.code == "invalid_setting"
    assert "secret" not in caught.value.message


def test_unknown_variable_without_similar_name_is_rejected() -> None:
    with pytest.raises(InvalidSetting, match=r"there is no setting WHOSTHERE_QQQQ$"):
        read_settings({"WHOSTHERE_QQQQ": "1"})
    with pytest.raises(InvalidSetting, match="WHOSTHERE_QQQQ"):
        read_settings({}, qqqq=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PRECISION", "float64"),
        ("PRECISION", ""),
        ("THREADS", "-1"),
        ("THREADS", "1025"),
        ("THREADS", "many"),
        ("THREADS", "1.5"),
        ("THREADS", ""),
        ("MAX_IMAGE_BYTES", "1023"),
        ("MAX_IMAGE_BYTES", "32MB"),
        ("MAX_IMAGE_PIXELS", "9999"),
        ("FPIR", "0"),
        ("FPIR", "1"),
        ("FPIR", "-0.1"),
        ("FPIR", "nan"),
        ("FPIR", "inf"),
        ("FPIR", "1%"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("OPEN", "maybe"),
        ("OPEN", ""),
        ("MAX_BODY_BYTES", "0"),
        ("MAX_BATCH", "0"),
        ("MAX_BATCH", "257"),
        ("MAX_WAITING", "0"),
        ("ROOT_PATH", "faces"),
        ("ROOT_PATH", "/faces/"),
        ("ROOT_PATH", "//evil.example"),
        ("ROOT_PATH", "/a b"),
        ("TRUSTED_PROXIES", "proxy.example.com"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "*"),
        ("ALLOWED_ORIGINS", "*"),
        ("ALLOWED_ORIGINS", "null"),
        ("ALLOWED_ORIGINS", "app.example.com"),
        ("ALLOWED_ORIGINS", "https://app.example.com/"),
        ("ALLOWED_ORIGINS", "https://*.example.com"),
        ("ALLOWED_ORIGINS", "https://bücher.example"),
    ],
)
def test_error_for_bad_value_names_its_variable(key: str, value: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        read_settings({PREFIX + key: value, "WHOSTHERE_HOST": "localhost"})
    assert caught.value.message.startswith(f"{PREFIX}{key} is {value!r}: ")
    assert isinstance(caught.value, InvalidRequest)


@pytest.mark.parametrize(("key", "low", "high"), [("threads", 0, 1024), ("port", 0, 65535), ("max_batch", 1, 256)])
def test_values_at_the_limits_are_allowed(key: str, low: int, high: int) -> None:
    assert [getattr(read_settings({}, **{key: value}), key) for value in (low, high)] == [low, high]


def test_lists_of_origins_and_networks_are_normalized() -> None:
    settings = read_settings(
        {
            "WHOSTHERE_ALLOWED_ORIGINS": "https://App.example.com:443, http://a:80,http://[::1]:3000, capacitor://localhost,",
            "WHOSTHERE_TRUSTED_PROXIES": " 10.1.2.3/8,::1 ",
        }
    )
    origins = "https://app.example.com,http://a,http://[::1]:3000,capacitor://localhost"
    assert settings.allowed_origins == origins
    assert settings.trusted_proxies == "10.0.0.0/8,::1/128"


def test_settings_cannot_be_changed() -> None:
    settings = read_settings({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1
    assert settings.port == 8000


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
