import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cra.services.training.buildings.attributes import BUILDING, SLOTS, Speech, phrases, vocabulary
from cra.services.training.buildings.captions import NAMEABLE
from cra.services.training.buildings.dataset import Made, make, read_dataset, write_dataset
from cra.services.training.buildings.oracle import ceiling
from cra.services.training.buildings.render import render
from cra.services.training.buildings.scene import LOOK_ALIKE_EVERY, SPLITS, VIEWS, held_out, sample

COUNT = 80


@pytest.fixture(scope="module")
def made() -> list[Made]:
    """Make the first pictures of the test split."""
    return [make(index, "test") for index in range(COUNT)]


def test_same_arguments_give_the_same_bytes(made: list[Made]) -> None:
    """A picture is its (seed, split, index): pixels and captions are equal in another process."""
    code = (
        "import hashlib; from cra.services.training.buildings.dataset import make;"
        "m = make(5, 'test'); print(hashlib.sha256(m.jpeg + m.line('').encode()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = hashlib.sha256(made[5].jpeg + made[5].line("").encode()).hexdigest()
    assert run.stdout.strip() == expected


def test_another_seed_gives_another_set() -> None:
    """The seed changes the picture."""
    assert make(5, "test").jpeg != make(5, "test", seed=1).jpeg


def test_no_two_images_alike(made: list[Made]) -> None:
    """Even two views of one building and look-alikes differ in many pixels."""
    small = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(entry.jpeg)).resize((32, 32)), dtype=np.int16)
            for entry in made
        ]
    )
    for i in range(COUNT - 1):
        differing = (np.abs(small[i + 1 :] - small[i]).max(axis=3) > 8).mean(axis=(1, 2))
        assert differing.min() > 0.01
    assert len({entry.jpeg for entry in made}) == COUNT


def test_splits_share_no_building() -> None:
    """Buildings of different splits have different names and different shapes."""
    shapes = {
        split: {
            (building.width, building.storey)
            for building in (sample(split, i).building for i in range(0, 200, VIEWS))
        }
        for split in SPLITS
    }
    assert not shapes["train"] & shapes["test"]
    assert not shapes["train"] & shapes["validation"]
    assert not shapes["validation"] & shapes["test"]
    assert sample("train", 0).name != sample("test", 0).name


def test_held_out_pairs_are_new_in_the_test_split() -> None:
    """No building of training has a held-out pair of roof and wall; many of the test split do."""

    def share(split: str) -> float:
        pairs = []
        for index in range(0, 1200, VIEWS):
            scene = sample(split, index)
            for building in (scene.building, scene.neighbour):
                if building is not None:
                    pairs.append(held_out(building.facts["roof"], building.facts["wall"]))
        return sum(pairs) / len(pairs)

    assert share("train") == 0
    assert share("test") > 0.3


def test_held_out_values_are_known_from_training() -> None:
    """Only the pairs are new: each roof and each wall has pairs that training may show."""
    roofs, walls = BUILDING["roof"].values, BUILDING["wall"].values
    assert all(any(not held_out(roof, wall) for wall in walls) for roof in roofs)
    assert all(any(not held_out(roof, wall) for roof in roofs) for wall in walls)
    assert any(held_out(roof, wall) for roof in roofs for wall in walls)


def test_look_alikes_differ_in_one_detail() -> None:
    """Every fourth building is its predecessor but for one attribute."""
    for number in range(LOOK_ALIKE_EVERY - 1, 80, LOOK_ALIKE_EVERY):
        one = sample("test", number * VIEWS).building.facts
        other = sample("test", (number - 1) * VIEWS).building.facts
        assert sum(one[slot] != other[slot] for slot in one) == 1


def test_views_show_one_building() -> None:
    """Two pictures with one building's name show the same attributes in other surroundings."""
    one, other = sample("test", 0), sample("test", 1)
    assert one.name == other.name
    assert one.building == other.building
    assert one.entropy != other.entropy


def test_phrases_belong_to_one_fact() -> None:
    """No phrase is said of two facts, so a caption means what it names."""
    speeches: tuple[Speech, ...] = ("plain", "professional")
    for speech in speeches:
        said = [
            phrase
            for slot, spec in SLOTS.items()
            for key in spec.values
            for phrase in phrases(f"{slot}={key}", speech)
        ]
        assert len(said) == len(set(said))


def test_plain_captions_use_no_professional_term(made: list[Made]) -> None:
    """No professional term occurs in a plain caption, and no plain phrase in a professional one."""
    plain_terms, terms = vocabulary("plain"), vocabulary("professional")
    assert not any(term in phrase for term in terms for phrase in plain_terms)
    for entry in made:
        for caption in entry.plain:
            assert not [term for term in terms if term in caption.text]
        for caption in entry.professional:
            assert not [term for term in plain_terms if term in caption.text]


def test_captions_name_only_what_is_seen(made: list[Made]) -> None:
    """Each named fact shows, large enough to be named, and its phrase is in the text."""
    for entry in made:
        for speech, captions in (("plain", entry.plain), ("professional", entry.professional)):
            for caption in captions:
                assert caption.names
                for fact in caption.names:
                    assert entry.facts[fact] >= NAMEABLE
                    assert any(phrase in caption.text for phrase in phrases(fact, speech))  # type: ignore[arg-type]


def test_captions_leave_something_out(made: list[Made]) -> None:
    """Captions name only some of what is seen, and those of one picture differ."""
    for entry in made:
        nameable = [
            f for f, size in entry.facts.items() if size >= NAMEABLE and phrases(f, "plain")
        ]
        texts = [caption.text for caption in entry.plain]
        assert len(texts) == len(set(texts))
        assert len(nameable) <= 4 or all(len(c.names) < len(nameable) for c in entry.plain)


def test_pictures_are_photographs_in_size(made: list[Made]) -> None:
    """Pictures are 480 pixels on the long side, in several aspect ratios."""
    sizes = {sample("test", i).size for i in range(COUNT)}
    assert len(sizes) >= 5
    assert {max(size) for size in sizes} == {480}
    assert render(sample("test", 0)).image.size == sample("test", 0).size


def test_attributes_have_long_tails() -> None:
    """There are over a hundred values; the rarest roof is ten times rarer than the commonest."""
    assert sum(len(spec.values) for spec in SLOTS.values()) > 100
    weights = [value.weight for value in BUILDING["roof"].values.values()]
    assert max(weights) > 10 * min(weights)


def test_folder_round_trip(tmp_path: Path, made: list[Made]) -> None:
    """What is written is read back, files and captions, and progress counts every picture."""
    counts: list[int] = []
    write_dataset(tmp_path, "test", 6, counts.append)
    pictures = read_dataset(tmp_path)
    assert counts == [1, 2, 3, 4, 5, 6]
    for picture, entry in zip(pictures, made[:6], strict=True):
        assert picture.file.read_bytes() == entry.jpeg
        assert picture.building == entry.building
        assert picture.plain == [caption.text for caption in entry.plain]
        assert picture.professional == [caption.text for caption in entry.professional]
        assert picture.names[picture.plain[0]] == entry.plain[0].names
        with Image.open(picture.file) as image:
            assert image.format == "JPEG"


def test_unfinished_folder_is_no_dataset(tmp_path: Path) -> None:
    """A folder without its index, which is written last, cannot be read as a smaller set."""
    with pytest.raises(FileNotFoundError):
        read_dataset(tmp_path)


def _render(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cra.services.training.buildings", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_renders_into_a_folder(tmp_path: Path, made: list[Made]) -> None:
    """It makes the folder, with as many pictures as were asked for."""
    folder = tmp_path / "new" / "photos"
    done = _render(str(folder), "--count", "3")
    assert done.returncode == 0, done.stderr
    assert [one.file.read_bytes() for one in read_dataset(folder)] == [m.jpeg for m in made[:3]]


def test_what_the_command_cannot_do_it_says(tmp_path: Path) -> None:
    """No pictures at all, or a file where the folder is to be: a line that names it, no trace."""
    none = _render(str(tmp_path), "--count", "0")
    assert (none.returncode, "--count is 0" in none.stderr) == (2, True)
    (tmp_path / "taken").touch()
    taken = _render(str(tmp_path / "taken"), "--count", "3")
    assert taken.returncode == 1
    assert "cannot write to" in taken.stderr
    assert "Traceback" not in taken.stderr


@pytest.mark.parametrize(("split", "index"), [("holdout", 0), ("test", -1)])
def test_unknown_pictures_are_refused(split: str, index: int) -> None:
    """An unknown split or a negative index is an error, not another picture."""
    with pytest.raises(ValueError, match="no picture"):
        sample(split, index)


def test_ceiling_leaves_room(tmp_path: Path) -> None:
    """In a gallery of 200 the R@2 ceiling, as deep as R@20 in 2,000, leaves room at both ends."""
    write_dataset(tmp_path, "test", 200)
    pictures = read_dataset(tmp_path)
    queries = [(i, text) for i, picture in enumerate(pictures) for text in picture.plain]
    assert 0.55 < ceiling(pictures, queries, 2, 96) < 0.9
