"""Lesson 06: names of points, and a network for points that comes back from its file."""

import pytest
from helpers import same

from diffusion_course.field import PointDiffusion, toy_points


def test_points_of_an_unknown_name():
    assert all(toy_points(name, 20).shape == (20, 2, 1, 1) for name in ("spiral", "smiley", "clouds"))
    with pytest.raises(ValueError, match="'smiley' or 'clouds', not 'spirale'"):
        toy_points("spirale")


def test_saved_and_loaded(tmp_path):
    model = PointDiffusion(predicts="noise", width=16)
    model.save_pretrained(tmp_path)
    again = PointDiffusion.from_pretrained(tmp_path)
    assert same(again, model) and again.config.predicts == "noise"
