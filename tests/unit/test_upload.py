"""What `cra put` puts where."""

import os
from pathlib import Path

import pytest
from PIL import Image

from cra.services.cli.upload import SUFFIXES, Upload, find_uploads
from cra.shared.model.pixels import FORMATS


def test_folders_keep_their_paths(tmp_path: Path) -> None:
    """Images below a folder keep their path from it on; others are counted; names win."""
    for name in ("a.jpg", "西安/b b.PNG", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    images = [
        Upload(tmp_path / "a.jpg", "campus/a.jpg"),
        Upload(tmp_path / "西安/b b.PNG", "campus/西安/b b.PNG"),
    ]
    assert find_uploads([tmp_path], "campus/") == (images, 1)
    assert find_uploads([tmp_path, tmp_path], "campus/") == (images, 1)
    notes = Upload(tmp_path / "notes.txt", "notes.txt")
    assert find_uploads([notes.file]) == ([notes], 0)
    assert find_uploads([tmp_path, notes.file], "campus/")[1] == 0


def test_what_is_no_file_is_counted(tmp_path: Path) -> None:
    """FIFOs, links to nothing and links to folders are left out with a count; folders are not.

    Break: count files alone in `find_uploads`.
    """
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "nothing.jpg").symlink_to(tmp_path / "none")
    (tmp_path / "to_folder").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "fifo.jpg")
    uploads, others = find_uploads([tmp_path])
    assert [one.key for one in uploads] == ["a.jpg", "link.jpg"]
    assert others == 3


def test_a_folder_is_searched_for_every_format_that_is_decoded() -> None:
    """The endings are those that Pillow knows for the formats that ingest decodes.

    Fails when `.ppm` is taken out.
    """
    Image.init()
    known = Image.registered_extensions().items()
    assert {ending for ending, name in known if name in FORMATS} == SUFFIXES


def test_two_files_for_one_key_are_refused(tmp_path: Path) -> None:
    """Two files that would overwrite each other are named; one file given twice is put once."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"would both become a\.jpg"):
        find_uploads([tmp_path / "one", tmp_path / "two"])
    assert len(find_uploads([tmp_path / "one", tmp_path / "one/a.jpg"])[0]) == 1


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A path that does not exist is not skipped in silence."""
    with pytest.raises(FileNotFoundError):
        find_uploads([tmp_path / "none"])
