"""The data set that ships: complete, balanced, and drawn by the program beside it."""

import datasets
import numpy as np
import pytest

from data import draw_toy_faces
from diffusion_utils import TOY_FACES, get_data


@pytest.fixture(scope="module", params=[("train", 3000), ("test", 1000)])
def rows(request, tmp_path_factory):
    split, count = request.param
    rows = datasets.load_dataset(str(TOY_FACES), split=split, cache_dir=tmp_path_factory.mktemp("cache"))
    assert len(rows) == count
    return split, rows


def test_columns(rows):
    _, rows = rows
    assert isinstance(rows.features["image"], datasets.Image)
    kinds = {name: kind for name, kind in rows.features.items() if name != "image"}
    needed = {"hair_style", "hair_color", "skin_tone", "glasses", "smile", "background", "hat", "beard"}
    assert needed <= set(kinds)
    assert all(isinstance(kind, datasets.ClassLabel) or kind.dtype == "float32" for kind in kinds.values())
    assert all(image.size == (64, 64) and image.mode == "RGB" for image in rows["image"])


def test_balanced(rows):
    _, rows = rows
    for column in ("skin_tone", "hair_style"):
        counts = np.bincount(rows[column], minlength=rows.features[column].num_classes)
        assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean(), column
    for column, low, high in [("glasses", 0.15, 0.35), ("hat", 0.12, 0.28), ("beard", 0.15, 0.35)]:
        none = rows.features[column].str2int("none")
        assert low < np.mean(np.array(rows[column]) != none) < high, column


def test_drawn_again_exactly(rows):
    split, rows = rows
    for i in range(0, len(rows), len(rows) // 20):
        again = draw_toy_faces.draw_face(draw_toy_faces.sample_attributes(split, i))
        assert np.array_equal(np.asarray(again), np.asarray(rows[i]["image"])), f"{split} {i}"
        assert np.array_equal(np.asarray(draw_toy_faces.draw_face(rows[i])), np.asarray(again))


def test_no_face_twice():
    images = [image.tobytes() for split in ("train", "test") for image in get_data(split=split)]
    assert len(set(images)) == len(images) == 4000


def test_small_enough():
    assert sum(path.stat().st_size for path in TOY_FACES.rglob("*") if path.is_file()) < 16e6
