"""Evaluation of a model on a data set, with vectors made by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from cra.services.training.data.dataset import DataSet, Image
from cra.services.training.evaluation import exact, live
from cra.services.training.evaluation.exact import Vectors
from cra.services.training.evaluation.queries import ask
from cra.services.training.metrics import Relevant, recall_at_k
from cra.shared.errors import FailedPreconditionError


def image(name: str, *captions: str, group: str = "", **fields: object) -> Image:
    """Return an image that nobody reads."""
    return Image(name, group or name, captions, lambda: b"", **fields)  # type: ignore[arg-type]


WORLD = DataSet(
    (
        image("a", "红墙", "庑殿顶", group="hall", attributes={"roof": "hip"}, general=("房子",)),
        image("b", "红墙", group="hall", attributes={"roof": "hip"}, general=("房子",)),
        image("c", "灰墙", "歇山顶", attributes={"roof": "gable"}),
        image("d"),
    )
)
"""Four images: two share a caption, one has none."""


def rows(relevant: Relevant) -> list[list[int]]:
    """Return the right candidates of each query."""
    return [relevant.row(i).tolist() for i in range(len(relevant))]


def test_each_text_is_asked_once() -> None:
    """Equal captions are one query, for which all their images are right."""
    queries = ask(WORLD, "captions")
    assert queries.texts == ("红墙", "庑殿顶", "灰墙", "歇山顶")
    assert rows(queries.images_of) == [[0, 1], [0], [2], [2]]
    assert queries.gallery == 4


def test_images_are_asked_for_all_their_texts() -> None:
    """An image with captions is a query for all of them, those of its likes too."""
    queries = ask(WORLD, "captions")
    assert queries.images.tolist() == [0, 1, 2]
    assert rows(queries.texts_of) == [[0, 1], [0], [2, 3]]


def test_what_the_tower_reads_as_equal_is_equal() -> None:
    """Spellings that the normaliser folds describe the same images, and are asked each."""
    world = DataSet((image("a", "斗栱"), image("b", "斗拱"), image("c", "斗栱", "斗拱")))
    queries = ask(world, "captions", lambda text: text.replace("栱", "拱"))
    assert queries.texts == ("斗栱", "斗拱")
    assert rows(queries.images_of) == [[0, 1, 2], [0, 1, 2]]
    assert rows(queries.texts_of) == [[0, 1], [0, 1], [0, 1]]
    assert rows(ask(world, "captions").images_of) == [[0, 2], [1, 2]]


def test_everyday_captions_are_asked_apart() -> None:
    """General captions make queries of their own; a data set without any is refused."""
    assert ask(WORLD, "general").texts == ("房子",)
    with pytest.raises(FailedPreconditionError, match="general"):
        ask(DataSet(WORLD.images[2:]), "general")


def test_figures_by_hand() -> None:
    """On a gallery of four, every figure is what counting on fingers gives."""
    images_nd = np.eye(4, dtype=np.float32)
    vectors = {
        "红墙": [0.1, 0.9, 0.2, 0.0],  # image b first: right
        "庑殿顶": [0.5, 0.9, 0.2, 0.0],  # a comes second
        "灰墙": [0.5, 0.9, 0.2, 0.3],  # c comes last
        "歇山顶": [0.0, 0.1, 0.9, 0.3],  # c comes first
    }

    def encode(texts: Sequence[str]) -> Vectors:
        return np.array([vectors[text] for text in texts], np.float32)

    found = exact.evaluate(
        images_nd, WORLD, encode, model="m-1", ceiling=lambda queries, k: min(1.0, k / 2)
    )
    there, back = found.text_to_image, found.image_to_text
    assert (there.queries, there.candidates, there.groups) == (4, 4, 2)
    assert there.recall[1].value == pytest.approx(2 / 4)
    assert there.recall[5].value == 1.0
    assert there.chance[1] == pytest.approx((2 / 4 + 3 * 1 / 4) / 4)
    assert there.ceiling == {1: 0.5, 5: 1.0, 10: 1.0, 20: 1.0}
    assert there.mean_reciprocal_rank.value == pytest.approx((1 + 1 / 2 + 1 / 4 + 1) / 4)
    assert there.median_rank.value == 1.5
    # Columns: a finds two texts that score 0.5, one of them its own; b its own among 0.9s.
    assert (back.queries, back.candidates) == (3, 4)
    assert back.recall[1].value == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)
    by_value = {one.value: one for one in found.categories}
    assert by_value["hip"].queries == 2
    assert by_value["gable"].recall.value == 1.0
    # All of its queries are of one building.
    assert by_value["gable"].recall.low is None


def test_evaluation_agrees_with_the_matrix() -> None:
    """On random vectors it gives what the metrics give on the whole matrix, with intervals."""
    rng = np.random.default_rng(0)
    images_nd = rng.normal(size=(60, 8)).astype(np.float32)
    texts = {f"文{i}": rng.normal(size=8).astype(np.float32) for i in range(120)}
    world = DataSet(
        tuple(image(str(i), f"文{i}", f"文{i + 60}", group=f"g{i % 12}") for i in range(60))
    )
    found = exact.evaluate(images_nd, world, lambda asked: np.stack([texts[t] for t in asked]))
    asked = [f"文{i + 60 * j}" for i in range(60) for j in range(2)]
    scores_qn = np.stack([texts[text] for text in asked]) @ images_nd.T
    for k, one in found.text_to_image.recall.items():
        assert one.value == pytest.approx(recall_at_k(scores_qn, np.arange(120) // 2, k))
        assert one.low is not None
        assert one.high is not None
        assert one.low <= one.value <= one.high


def test_two_models_on_the_same_queries() -> None:
    """The differences are those of the figures; a model differs from itself by 0 with p of 1."""
    rng = np.random.default_rng(1)
    images_nd = rng.normal(size=(50, 16)).astype(np.float32)
    world = DataSet(tuple(image(str(i), f"文{i}", group=f"g{i % 25}") for i in range(50)))
    queries = ask(world, "captions")
    good = exact.answer(queries, images_nd, images_nd)
    bad = exact.answer(queries, images_nd, rng.normal(size=(50, 16)).astype(np.float32))
    found = exact.compare(queries, ("base", bad), ("tuned", good))
    gain = found.text_to_image["R@5"]
    assert gain.value == pytest.approx(good.to_images.recall_at_k(5) - bad.to_images.recall_at_k(5))
    assert gain.p_value < 0.01
    same = exact.compare(queries, ("tuned", good), ("tuned", good))
    for one in (*same.text_to_image.values(), *same.image_to_text.values()):
        assert (one.value, one.low, one.high, one.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_best_breaks_ties_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best come in order of score, then of place, or of the order given, also at the cut."""
    monkeypatch.setattr(exact, "_SCORES_AT_ONCE", 4)
    items_nd = np.array([[0.5], [0.9], [0.5], [0.5]], np.float32)
    queries_qd = np.array([[1.0], [-1.0]], np.float32)
    found = exact.best(queries_qd, items_nd, 3)
    assert [row.tolist() for row in found] == [[1, 0, 2], [0, 2, 3]]
    found = exact.best(queries_qd, items_nd, 3, np.array([3, 2, 1, 0]))
    assert [row.tolist() for row in found] == [[1, 3, 2], [3, 2, 0]]


def test_index_loss_by_hand() -> None:
    """What the gateway misses or puts lower than the matrix is the index's loss, to the image."""
    images_nd = np.eye(3, dtype=np.float32)
    world = DataSet(tuple(image(name, name) for name in "abc"))
    queries = ask(world, "captions")
    texts_qd = np.array([[0.9, 0.3, 0.1], [0.3, 0.9, 0.1], [0.1, 0.3, 0.9]], np.float32)
    order_n = np.arange(3)
    hits = [np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([1, 0])]
    found = live.measure("m-1", queries, images_nd, texts_qd, hits, order_n)
    assert {k: one.value for k, one in found.exact.items()} == {1: 1.0, 5: 1.0, 10: 1.0, 20: 1.0}
    assert found.live[1].value == pytest.approx(1 / 3)  # the second came second, the third not
    assert found.live[5].value == pytest.approx(2 / 3)
    assert found.index_loss[1].value == pytest.approx(2 / 3)
    assert found.index_loss[20].value == pytest.approx(1 / 3)
    assert found.overlap == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_vectors_of_another_gallery_are_refused() -> None:
    """Vectors of other images than the data set's raise instead of giving a figure."""
    three = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="3 vectors of 4 images"):
        exact.evaluate(three, WORLD, lambda texts: three[: len(texts)])
