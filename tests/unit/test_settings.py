"""Settings: typed, checked at the start, one default each, and all of them in the README."""

import ast
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from cra.shared.errors import FailedPreconditionError
from cra.shared.settings import Settings
from tests.unit import settings_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the environment's own settings out."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CRA_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gateway_port", "0"),
        ("gateway_port", "65536"),
        ("embedding_port", "-1"),
        ("ingest_port", "http"),
        ("events_port", ""),
        ("max_calls", "1"),
        ("max_batch", "-1"),
        ("runtime", "onnx"),
        ("max_batch", "257"),
        ("max_queue", "0"),
        ("tower_threads", "-1"),
        ("precision", "fp8"),
        ("drain_seconds", "-1"),
        ("drain_seconds", "soon"),
        ("encode_timeout", "0"),
        ("encode_timeout", "nan"),
        ("milvus_timeout", "inf"),
        ("s3_secure", "perhaps"),
        ("url_seconds", "604801"),
        ("ingest_batch", "65"),
        ("lease_seconds", "4"),
        ("max_losses", "0"),
        ("max_object_bytes", "1.5"),
        ("reconcile_seconds", "0"),
        ("max_deletion_share", "1.01"),
        ("log_format", "xml"),
        ("log_level", "LOUD"),
        ("buckets", ""),
        ("buckets", " , "),
        ("buckets", "images,UPPER"),
        ("buckets", "ab"),
        ("buckets", "images,others,images"),
        ("device", "tpu"),
        ("device", "cuda:"),
        ("releases_bucket", ""),
        ("releases_bucket", "Releases"),
        ("releases_bucket", "images"),
        ("release_poll_seconds", "0"),
        ("max_releases", "0"),
        ("event_token", "令牌"),
        ("redis_url", "rediss://redis:6379/0"),
        ("redis_url", "rediss://redis:6379/0?ssl_cert_reqs=none"),
        ("service_token", "two words"),
    ],
)
def test_a_bad_value_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value out of its limits stops the start, and the error names the setting."""
    monkeypatch.setenv(f"CRA_{name.upper()}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model", "ViT-B-16", "ViT-B-16"),
        ("gateway_port", "1", 1),
        ("max_deletion_share", "1", 1.0),
        ("drain_seconds", "0", 0.0),
        ("s3_secure", "true", True),
        ("buckets", "images", ("images",)),
        ("buckets", "one, two.3 ,f-4,", ("one", "two.3", "f-4")),
        ("device", "cuda:1", "cuda:1"),
        ("log_level", "DEBUG", "DEBUG"),
    ],
)
def test_the_environment_sets(
    name: str, value: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CRA_NAME` sets `name`, typed."""
    monkeypatch.setenv(f"CRA_{name.upper()}", value)
    assert getattr(Settings(), name) == expected


def test_what_is_wrong_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable by its own name with its rule, and no secret's value."""
    for name, value in (
        ("BUCKETS", "images,UPPER"), ("DEVICE", "tpu"), ("GATEWAY_PORT", "0"),
        ("SERVICE_TOKEN", "two words"),
    ):  # fmt: skip
        monkeypatch.setenv(f"CRA_{name}", value)
    with pytest.raises(FailedPreconditionError) as caught:
        Settings.load()
    told = caught.value.message
    assert "CRA_BUCKETS: 'UPPER' is no bucket's name: that has 3 to 63 lower-case letters" in told
    assert "CRA_DEVICE: 'tpu' is none of `auto`, `cpu`, `cuda` and `cuda:N`" in told
    assert "CRA_GATEWAY_PORT: " in told
    assert "CRA_SERVICE_TOKEN: " in told
    assert "two words" not in told
    assert "\n" not in told


def test_defaults_are_valid() -> None:
    """What is not set has its default, and each default is within its own limits."""
    settings = Settings()
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    assert Settings.model_validate(values) == settings
    # As text, from the table, too.
    Settings.model_validate({name: settings_table._text(value) for name, value in values.items()})


def test_settings_cannot_be_changed() -> None:
    """Settings are read once: nobody changes them later."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().host = "0.0.0.0"  # type: ignore[misc]  # noqa: S104


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed or logged, settings show no secret."""
    names = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    assert {"s3_secret_key", "service_token", "event_token", "page_key"} <= set(names)
    for name in names:
        monkeypatch.setenv(f"CRA_{name.upper()}", "hush-hush")
    assert "hush-hush" not in repr(Settings()) + str(Settings())


def test_every_setting_is_used() -> None:
    """A setting that no code reads is no setting."""
    read = {
        node.attr
        for folder in ("services", "shared", "deploy")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert set(Settings.model_fields) <= read


def test_settings_are_read_in_one_place() -> None:
    """No service reads the environment past the settings; what libraries read it may write."""
    for folder in ("services", "shared"):
        for file in (ROOT / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
            written = [
                node.value
                for node in nodes
                if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
            ]
            names = {
                node.attr
                for node in nodes
                if isinstance(node, ast.Attribute) and node not in written
            }
            assert not names & {"environ", "getenv"}, file


def test_readme_lists_every_setting() -> None:
    """The README's table is the settings': each with its default and its meaning, no other."""
    assert settings_table.written() == settings_table.table(), (
        "write it with: python -m tests.unit.settings_table"
    )


def test_secrets_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of files, as a mounted secret is one, sets what the environment does not.

    Break: load without `_secrets_dir`.
    """
    monkeypatch.setenv("CRA_SECRETS_DIR", str(tmp_path))
    (tmp_path / "CRA_SERVICE_TOKEN").write_text("from-a-file\n")
    (tmp_path / "cra_page_key").write_text("from-a-file-too")
    (tmp_path / "CRA_EVENT_TOKEN").write_text("from-a-file")
    (tmp_path / "..data").mkdir()  # as Kubernetes puts it beside them
    monkeypatch.setenv("CRA_EVENT_TOKEN", "from-the-environment")
    settings = Settings.load()
    assert settings.service_token.get_secret_value() == "from-a-file"
    assert settings.page_key.get_secret_value() == "from-a-file-too"
    assert settings.event_token.get_secret_value() == "from-the-environment"
    assert "from-" not in repr(settings)


def test_an_env_file_may_name_the_folder(tmp_path: Path) -> None:
    """CRA_SECRETS_DIR may stand in an env file as any other setting does.

    Break: find the folder without the env file.
    """
    (tmp_path / "CRA_SERVICE_TOKEN").write_text("from-a-file")
    env_file = tmp_path / "cra.env"
    env_file.write_text(f"CRA_SECRETS_DIR={tmp_path}\n")
    assert Settings.load(env_file).service_token.get_secret_value() == "from-a-file"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("", b"", "CRA_SECRETS_DIR: {folder}: No such file or directory"),
        ("CRA_SERVICE_TOKEN", b"two hush-words", "CRA_SERVICE_TOKEN: only visible ASCII"),
        ("CRA_SERVICE_TOKEN", b"\xff hush", "CRA_SECRETS_DIR: {folder}: holds what is no UTF-8"),
    ],
)
def test_a_bad_folder_of_secrets_stops_the_start(
    name: str, content: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is not there, or holds nonsense, is named; what it holds is not.

    Break: hand the folder to pydantic unlooked, which only warns of one that is not there.
    """
    folder = tmp_path / "secrets"
    if name:
        folder.mkdir()
        (folder / name).write_bytes(content)
    monkeypatch.setenv("CRA_SECRETS_DIR", str(folder))
    with pytest.raises(FailedPreconditionError) as caught:
        Settings.load()
    assert told.format(folder=folder) in caught.value.message
    assert "hush" not in caught.value.message
