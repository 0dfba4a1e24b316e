"""`cra put` on a real object store: what goes wrong is said once, and what to do about it."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cra.services.cli.__main__ import main
from cra.services.cli.upload import Upload, put_all
from cra.shared.adapters.object_store import connect
from cra.shared.settings import Settings
from tests.fakes import picture


def put(s3: Settings, *arguments: str, access_key: str | None = None) -> Result:
    """Run `cra put` against the store."""
    return CliRunner().invoke(
        main,
        ["put", *arguments],
        env={
            "COLUMNS": "4000",
            "CRA_S3_ENDPOINT": s3.s3_endpoint,
            "CRA_S3_ACCESS_KEY": s3.s3_access_key if access_key is None else access_key,
            "CRA_S3_SECRET_KEY": s3.s3_secret_key.get_secret_value(),
        },
    )


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture whose name is full of markup."""
    file = tmp_path / "plan[red][ :smile:.png"
    file.write_bytes(picture((200, 30, 30)))
    return file


def test_a_file_that_is_not_put_is_named_once(s3: Settings, photo: Path) -> None:
    """A key over the store's limit neither fills the screen nor stops the other files."""
    long = "/".join(["长" * 60] * 8)
    done = put(s3, str(photo), "--prefix", f"{long}/")
    assert done.exit_code == 1, done.output
    assert f"not put {photo}: " in done.output
    assert long not in done.output
    assert put(s3, str(photo)).exit_code == 0


def test_a_file_that_is_gone_is_told_from_a_store_that_is_down(s3: Settings, photo: Path) -> None:
    """It is the file that is at fault, and the others are put."""
    gone, there = Upload(photo.with_name("gone.png"), "gone.png"), Upload(photo, "there.png")
    problems = put_all(connect(s3), "images", [gone, there], {}, lambda _: None)
    assert problems == [(gone, "No such file or directory")]


def test_denied_credentials_point_at_the_settings_file(s3: Settings, photo: Path) -> None:
    """Who has not said CRA_ENV_FILE is told of it, once and before any file."""
    for key in ("", "wrong"):
        done = put(s3, str(photo.parent), access_key=key)
        assert done.exit_code == 1
        assert "CRA_ENV_FILE" in done.output
        assert "not put" not in done.output
