"""Releases as folders and the pointer: what is read back, what is refused."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.shared.errors import FailedPreconditionError
from cra.shared.releases import (
    CARD,
    MANIFEST,
    MAX_HISTORY,
    NAME,
    WEIGHTS,
    Pointer,
    name_of,
    parse_manifest,
    read_release,
    write_release,
)
from tests.releases import FIELDS, make_release

TOWER = "f00dfeed00000001"
_LABELS = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64).filter(
    lambda label: label[0].isalnum()
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_MAPS = st.dictionaries(st.text(max_size=8), _JSON, max_size=4)


@given(label=_LABELS, settings=_MAPS, metrics=_MAPS, weights=st.binary(max_size=64))
def test_what_is_written_is_read(
    label: str,
    settings: dict[str, Any],
    metrics: dict[str, Any],
    weights: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A release comes back from its folder as it was written, under the name of its content."""
    parent = tmp_path_factory.mktemp("releases")
    written = make_release(parent, TOWER, label, weights, settings=settings, metrics=metrics)
    assert read_release(written.folder) == written
    assert written.folder == parent / written.name
    assert NAME.fullmatch(written.name)
    assert written.name.startswith(f"{label}-")
    again = make_release(parent, TOWER, label, weights, settings=settings, metrics=metrics)
    assert again.name == written.name


@given(data=st.data())
def test_any_changed_byte_is_noticed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One byte of any file changed, cut off or added: refused, or another release by its name."""
    release = make_release(tmp_path_factory.mktemp("releases"), TOWER)
    file = release.folder / data.draw(st.sampled_from([MANIFEST, WEIGHTS, CARD]))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["change", "cut", "add"]))
    if how == "change":
        content[place] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[place:]
    else:
        content.insert(place, data.draw(st.integers(0, 255)))
    if bytes(content) == file.read_bytes():
        return
    file.write_bytes(content)
    try:
        found = read_release(release.folder)
    except FailedPreconditionError:
        return
    assert file.name == MANIFEST
    assert found.name != release.name


@pytest.mark.parametrize("file", [MANIFEST, WEIGHTS, CARD])
def test_a_missing_file_is_named(file: str, tmp_path: Path) -> None:
    """A release without one of its files is refused, and the message says which."""
    release = make_release(tmp_path, TOWER)
    (release.folder / file).unlink()
    with pytest.raises(FailedPreconditionError, match=file):
        read_release(release.folder)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/b",
        ".",
        "..",
        ".hidden",
        "a\\b",
        "a\nb",
        "",
        "门",
        "x" * 129,
        MANIFEST,
    ],
)
def test_files_lie_in_the_folder(name: str, tmp_path: Path) -> None:
    """A manifest that names a file elsewhere, or itself, is refused before anything is read."""
    with pytest.raises(FailedPreconditionError, match="names a file elsewhere"):
        write_release(
            tmp_path,
            {WEIGHTS: b"weights", name: b"x"},
            image_tower=TOWER,
            label="tricky",
            **FIELDS,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", ["", "-a", "a b", "a/b", "门", "x" * 65, "a\n", "../a"])
def test_labels_are_plain(label: str, tmp_path: Path) -> None:
    """A label that could not stand in a path or a key is refused."""
    with pytest.raises(FailedPreconditionError, match="label"):
        make_release(tmp_path, TOWER, label)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "format"),
        ({"image_tower": "no hex"}, "image_tower"),
        ({"dimension": 0}, "dimension"),
        ({"temperature": 0}, "temperature"),
        ({"surprise": 1}, "surprise"),
        ({"files": {}}, "lacks"),
        ({"files": {WEIGHTS: {"sha256": "abc", "size": 1}}}, "sha256"),
    ],
)
def test_a_manifest_is_checked(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    """A field that is unknown, missing or out of its limits is named."""
    release = make_release(tmp_path, TOWER)
    fields = json.loads((release.folder / MANIFEST).read_text()) | change
    with pytest.raises(FailedPreconditionError, match=problem):
        parse_manifest(json.dumps(fields).encode())


@given(st.binary(max_size=200))
def test_garbage_is_no_manifest_and_no_pointer(content: bytes) -> None:
    """Whatever bytes come, the error is ours."""
    for read in (parse_manifest, name_of, Pointer.parse):
        try:
            read(content)
        except FailedPreconditionError:
            continue
        assert read == Pointer.parse
        assert json.loads(content) == {}


_NAMES = st.sampled_from(["", "a-00000000", "b-00000000", "c-00000000"])


@given(st.lists(_NAMES | st.none(), max_size=30))
def test_the_pointer_is_a_stack(steps: list[str | None]) -> None:
    """Activations and rollbacks in any order do to the pointer what they do to a stack."""
    pointer, stack = Pointer(), [("", "")]
    for version, step in enumerate(steps):
        before = pointer
        if step is None and len(stack) == 1:
            with pytest.raises(FailedPreconditionError):
                pointer.rolled_back()
        elif step is None:
            stack.pop()
            pointer = pointer.rolled_back()
        else:
            if stack[-1] == (step, ""):
                stack[-1] = (step, TOWER)  # the same choice, which names its image tower now
            if stack[-1] != (step, TOWER):
                stack.append((step, TOWER))
            pointer = pointer.activated(step, TOWER)
        assert (pointer.release, pointer.image_tower) == stack[-1]
        assert [(one.release, one.image_tower) for one in pointer.history] == stack[:-1]
        assert pointer.version == before.version + (pointer is not before)
        assert pointer.version <= version + 1
        assert Pointer.parse(pointer.encode()) == pointer


def test_the_own_text_tower_of_another_image_tower_is_another_choice() -> None:
    """Choosing the base where nobody chose, or of another image tower, names the image tower.

    Where nobody chose it is active already, and no rollback goes from it to itself.

    Break: compare `self.image_tower or image_tower` in `Pointer.activated`; or add to the history
    whatever differs.
    """
    first = Pointer().activated("", TOWER)
    assert (first.version, first.image_tower) == (1, TOWER)
    assert first.history == ()
    assert first.activated("", TOWER) is first
    moved = first.activated("", "0" * 16)
    assert (moved.version, moved.image_tower) == (2, "0" * 16)
    assert moved.rolled_back().image_tower == TOWER


def test_the_history_is_bounded() -> None:
    """However often the pointer changes, it stays small, and goes back as far as it says."""
    pointer = Pointer()
    for number in range(MAX_HISTORY + 20):
        pointer = pointer.activated(f"r{number}-00000000", TOWER)
    assert len(pointer.history) == MAX_HISTORY
    assert Pointer.parse(pointer.encode()) == pointer
    for _ in range(MAX_HISTORY):
        pointer = pointer.rolled_back()
    assert pointer.release == "r19-00000000"
