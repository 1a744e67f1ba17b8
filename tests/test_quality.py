"""Lesson 07: the classifier, the distances with their error bar, precision and recall, faults, and the neighbours."""

import math
import warnings

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from data import draw_toy_faces
from diffusion_course.quality import (
    DETECTOR_HEADS,
    EYE_COLORS,
    FAULT_DETECTOR,
    FAULTS,
    HEADS,
    FaceClassifier,
    attributes,
    detector_loss,
    disturbed,
    error_bar,
    face_features,
    fault_rate,
    faulty_faces,
    find_faults,
    frechet_distance,
    group_distances,
    kernel_distance,
    labelled_faces,
    load_classifier,
    load_detector,
    main_directions,
    nearest,
    paired_difference,
    pixel_distance,
    precision_recall,
    train_classifier,
)
from diffusion_utils import TOY_FACES, square_rgb


def normal(n, d, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


@pytest.fixture(scope="module")
def held_out():
    return labelled_faces("test")


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


@pytest.fixture(scope="module")
def features(classifier, held_out):
    return face_features(classifier, held_out[0])


# The faces and the classifier -----------------------------------------------------------


def test_labelled_faces(held_out):
    """In the order of the data set, unshuffled, as `get_data` reads them."""
    faces, labels = held_out
    rows = datasets.load_dataset(str(TOY_FACES), split="test")
    assert faces.shape == (1000, 3, 32, 32) and faces.dtype == torch.float32
    assert {name: len(labels[name].unique()) for name in labels} == HEADS
    for name in HEADS.keys() - {"smile"}:
        assert labels[name].tolist() == list(rows[name])
    smile = torch.tensor(rows["smile"][:])
    assert smile[labels["smile"] == 0].max() < -1 / 3 < 1 / 3 < smile[labels["smile"] == 2].min()
    first = np.asarray(square_rgb(rows[0]["image"], 32)).transpose(2, 0, 1) / 255
    assert np.abs(faces[0].numpy() - first).max() < 1e-6


def test_face_features(classifier, held_out, features):
    faces, _ = held_out
    assert features.shape == (1000, 64) and features.dtype == torch.float64 and not features.requires_grad
    for other in (faces[:7].numpy(), faces[:7].clone()):
        assert torch.allclose(face_features(classifier, other, batch_size=3), features[:7], atol=1e-4)
    larger = faces[:7].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)  # 64×64, averaged down again
    assert torch.allclose(face_features(classifier, larger), features[:7], atol=1e-4)


def test_features_in_train_mode(held_out):
    """The classifier is put in eval mode, so that its BatchNorms do not learn from what is measured."""
    torch.manual_seed(0)
    fresh = FaceClassifier().train()
    before = fresh.features[1].running_mean.clone()
    face_features(fresh, held_out[0][:20])
    assert not fresh.training and torch.equal(before, fresh.features[1].running_mean)


def test_train_classifier(held_out):
    faces, labels = held_out
    few = {name: label[:256] for name, label in labels.items()}
    one, two = (train_classifier(faces[:256], few, epochs=10, seed=5) for _ in range(2))
    assert not one.training
    for a, b in zip(one.state_dict().values(), two.state_dict().values()):
        assert torch.allclose(a, b)
    seen = attributes(one, faces[256:])["background"]
    assert (seen == labels["background"][256:]).double().mean() > 0.3  # chance: 0.13


def test_half_a_classifier_is_refused(tmp_path):
    state = FaceClassifier().state_dict()
    state.pop("heads.hat.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="heads.hat.weight"):
        load_classifier(tmp_path)


# The distances: known values ------------------------------------------------------------


def test_frechet_distance_of_few_and_flat_points():
    """More features than points, and features that never vary: no NaN, and 0 for a set and itself."""
    few, flat = normal(5, 64, 0), normal(100, 8, 1) * torch.tensor([1.0] * 4 + [0.0] * 4)
    assert abs(frechet_distance(few, few)) < 1e-5 and abs(frechet_distance(flat, flat)) < 1e-5
    assert frechet_distance(flat, flat + 1) == pytest.approx(8, abs=1e-5)
    assert frechet_distance(few, normal(7, 64, 2)) > 0
    assert frechet_distance(few[:, :1], few[:, :1] + 2) == pytest.approx(4)  # a single feature


def test_kernel_distance_by_hand():
    x, y = normal(6, 3, 0), normal(4, 3, 1, shift=0.5)

    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b)) / 3 + 1) ** 3

    within_x = sum(k(x[i], x[j]) for i in range(6) for j in range(6) if i != j) / 30
    within_y = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(k(a, b) for a in x for b in y) / 24
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_of_arrays_and_of_other_numbers(distance):
    x, y = normal(60, 8, 0), normal(50, 8, 1, scale=1.3)
    assert distance(y, x) == pytest.approx(distance(x, y), rel=1e-9)
    assert type(distance(x, y)) is float
    assert distance(x.numpy(), y.requires_grad_()) == pytest.approx(distance(x, y.detach()))
    assert distance(x.float(), y.float()) == pytest.approx(distance(x, y), rel=1e-4)  # computed in double


@pytest.mark.parametrize("shift, low, high", [(0.5, 0.8, 1.25), (0.0, 0.9, 10)])
def test_error_bar_predicts_the_scatter(shift, low, high):
    """Of the distances of new samples; near the floor it is on the safe side."""
    y = normal(300, 8, 1)
    samples = [normal(400, 8, 100 + i, shift=shift) for i in range(100)]
    bars = np.sqrt(np.mean([error_bar(x, y) ** 2 for x in samples]))
    assert low < bars / np.std([kernel_distance(x, y) for x in samples]) < high


def test_the_error_of_a_difference():
    """What the noise does to both drops out: the paired error is that of a difference of means, and small."""
    y = normal(300, 8, 1)
    x = normal(400, 8, 0, scale=1.2, shift=0.5)
    worse = x + 0.03
    difference, error = paired_difference(worse, x, y)
    parts = [kernel_distance(a, y) - kernel_distance(b, y) for a, b in zip(worse.split(50), x.split(50))]
    assert difference == pytest.approx(np.mean(parts))
    assert error == pytest.approx(np.std(parts, ddof=1) / math.sqrt(8))
    assert error < 0.6 * min(error_bar(x, y), error_bar(worse, y)) and difference > 3 * error
    assert paired_difference(x, x, y) == (0, 0)
    whole = [kernel_distance(part, y) for part in x.split(50)]
    assert np.ptp(np.subtract(whole, group_distances(x, y))) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="features: 399 rows, but 400 in others"):
        paired_difference(worse[1:], x, y)
    with pytest.raises(ValueError, match="features: 15 images are too few for 8 groups"):
        error_bar(x[:15], y)


# Precision and recall -------------------------------------------------------------------


def test_precision_recall_against_the_definition():
    x, y, k = normal(40, 3, 0, scale=0.5), normal(50, 3, 1), 3

    def inside(points, cloud):
        share = 0
        for point in points:
            radii = [sorted((other - centre).norm() for other in cloud)[k] for centre in cloud]
            share += any((point - centre).norm() <= radius for centre, radius in zip(cloud, radii))
        return share / len(points)

    precision, recall = precision_recall(x, y, k)
    assert (precision, recall) == (pytest.approx(inside(x, y)), pytest.approx(inside(y, x)))
    assert precision > recall  # a cloud that is too narrow


# On pixels -----------------------------------------------------------------------------


def test_pixel_distance_against_the_definition():
    """Also for who compares many sets with the same reference, and gets its directions once."""
    torch.manual_seed(0)
    one, two = torch.rand(300, 3, 32, 32), 0.8 * torch.rand(400, 3, 32, 32) + 0.1
    pooled = [x.reshape(-1, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1).double().numpy() for x in (one, two)]
    _, vectors = np.linalg.eigh(np.cov(pooled[1].T))
    expected = frechet_distance(*(x @ vectors[:, ::-1][:, :64] for x in pooled))
    assert pixel_distance(one, two) == pytest.approx(expected, rel=1e-6)
    assert pixel_distance(one, two, main_directions(two)) == pixel_distance(one, two)


# What is refused ------------------------------------------------------------------------

MATRICES = [
    (torch.zeros(5), torch.zeros(5, 3), r"features must be a matrix .* not \(5,\)"),
    (torch.zeros(5, 3), torch.zeros(5, 3, 2, 2), r"reference must be a matrix .* not \(5, 3, 2, 2\)"),
    (torch.zeros(1, 3), torch.zeros(5, 3), r"features must .* of 2 images or more, not \(1, 3\)"),
]
IMAGES = [
    (torch.full((5, 3, 32, 32), 1.84), r"must lie in \[0, 1\], not from 1.84.* to 1.84"),
    (torch.zeros(5, 3, 32, 32) - 1, "must lie in .* not from -1.0 to -1.0"),
    (torch.full((5, 3, 32, 32), math.nan), "must lie in .* not from nan to nan"),
    (torch.zeros(5, 4, 32, 32), r"\(N, 3, S, S\) .* not \(5, 4, 32, 32\)"),
    (torch.zeros(5, 3, 8, 8), r"S from \d\d on, not \(5, 3, 8, 8\)"),
]


@pytest.mark.parametrize("function", [frechet_distance, kernel_distance, error_bar, precision_recall])
@pytest.mark.parametrize("features, reference, message", MATRICES)
def test_no_matrix_of_features(function, features, reference, message):
    with pytest.raises(ValueError, match=message):
        function(features, reference)


@pytest.mark.parametrize("images, message", IMAGES)
def test_images_that_no_metric_fits(classifier, held_out, images, message):
    for function in (
        lambda images: pixel_distance(images, held_out[0]),
        lambda images: pixel_distance(held_out[0], images),
        lambda images: face_features(classifier, images),
        lambda images: attributes(classifier, images),
        find_faults,
        fault_rate,
    ):
        with pytest.raises(ValueError, match=message):
            function(images)


# Faults -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty():
    """Held-out faces with each fault, far from those that the detector was trained on."""
    return {fault: faulty_faces(fault, range(300, 340), "test") for fault in FAULTS}


def test_the_names_are_those_of_the_program():
    assert FAULTS == draw_toy_faces.FAULTS and EYE_COLORS == list(draw_toy_faces.EYES)
    assert DETECTOR_HEADS == {"left_eye": len(EYE_COLORS), "right_eye": len(EYE_COLORS), "fault": len(FAULTS)}


def test_faulty_faces(faulty, held_out):
    faces, labels = faulty["none"]
    assert torch.equal(faces, held_out[0][300:340])  # as they are
    assert torch.equal(labels["left_eye"], labels["right_eye"]) and (labels["fault"] == 0).all()
    assert (labels["left_eye"][held_out[1]["glasses"][300:340] == 3] == -100).all()
    for number, fault in enumerate(FAULTS):
        faces, labels = faulty[fault]
        assert faces.shape[1:] == (3, 32, 32) and 0 <= faces.min() <= faces.max() <= 1
        assert list(labels) == list(DETECTOR_HEADS) and (labels["fault"] == number).all()
        assert {len(classes) for classes in labels.values()} == {len(faces)} and len(faces) >= 25
    labels = faulty["eyes"][1]
    assert (labels["left_eye"] != labels["right_eye"]).double().mean() > 0.3


def test_a_fault_again_and_at_64(faulty):
    again, _ = faulty_faces("smear", range(300, 303), "test")
    assert torch.equal(again, faulty["smear"][0][:3])
    large, _ = faulty_faces("smear", range(300, 303), "test", size=64)
    assert large.shape == (3, 3, 64, 64)
    assert (nn.functional.avg_pool2d(large, 2) - again).abs().mean() < 0.01


@pytest.mark.parametrize(
    "fault, attribute, value", [("hair", "hair_style", "bald"), ("eyes", "glasses", "sunglasses")]
)
def test_a_fault_that_cannot_be(fault, attribute, value):
    attributes = draw_toy_faces.sample_attributes("test", 0) | {attribute: value}
    assert draw_toy_faces.draw_fault(attributes, fault, 0) is None


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_a_fault_can_be_seen(fault):
    """And all that is right in the face stays."""
    attributes = draw_toy_faces.sample_attributes("test", 1)
    right = np.asarray(draw_toy_faces.draw_face(attributes), float)
    drawn = [draw_toy_faces.draw_fault(attributes, fault, seed) for seed in range(5)]
    for image, *_ in filter(None, drawn):
        changed = (abs(np.asarray(image) - right).max(axis=2) > 40).mean()
        assert 0.002 < changed < 0.6


def test_disturbed(held_out):
    """Small, different for each image, and still a face."""
    torch.manual_seed(0)
    faces = held_out[0][:50]
    changed = disturbed(faces)
    assert changed.shape == faces.shape and 0 <= changed.min() <= changed.max() <= 1
    difference = (changed - faces).abs().mean((1, 2, 3))
    assert 0.002 < difference.min() < difference.max() < 0.08


def test_detector_loss(held_out):
    """A mirror changes left and right; an eye that cannot be told does not count."""
    faces, labels = held_out[0][:64], torch.zeros(64, 3, dtype=torch.long)
    torch.manual_seed(0)
    detector = FaceClassifier(DETECTOR_HEADS).eval()
    for parameter in detector.heads.parameters():
        nn.init.zeros_(parameter)
    for known in (64, 1):
        labels[known:, 0] = -100
        assert detector_loss(detector, (faces, labels)).item() == pytest.approx(2 * math.log(6) + math.log(5))


def test_the_shipped_detector(faulty, held_out):
    """Its error rates, as its card and the lesson say them."""
    detector = load_detector()
    assert not detector.training and FAULT_DETECTOR.stat().st_size < 1e6
    faces, labels = held_out
    assert fault_rate(faces, detector) < 0.05
    found = torch.cat([find_faults(faulty[fault][0], detector) for fault in FAULTS[1:]])
    assert (found > 0).double().mean() > 0.65
    large = [faulty_faces(fault, range(300, 320), "test", size=64)[0] for fault in FAULTS[1:]]
    small = [faulty[fault][0][: len(part)] for fault, part in zip(FAULTS[1:], large)]
    same = [(find_faults(a, detector) > 0) == (find_faults(b, detector) > 0) for a, b in zip(large, small)]
    assert torch.cat(same).double().mean() > 0.9


# The neighbours -------------------------------------------------------------------------


def test_nearest():
    reference = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    distances, places = nearest(torch.tensor([[3.0, 4.0], [9.0, 0.0], [-3.0, -4.0]]), reference)
    assert places.tolist() == [1, 2, 0] and distances.tolist() == pytest.approx([0, 1, 5], abs=1e-6)


# Against torchmetrics -------------------------------------------------------------------


class Given(nn.Identity):
    """Instead of a feature network: what goes in is the features."""

    num_features = 64


def torchmetrics_says(kind, x, y, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        metric = kind(feature=Given(), **options)
    metric.update(y, real=True)
    metric.update(x, real=False)
    return metric.compute()


def cases(features):
    shift = 0.2 * normal(700, 64, 0)
    yield features[:500], features[500:]
    yield features[:300], features[300:] + shift
    yield normal(200, 64, 3), normal(150, 64, 4, scale=1.3, shift=0.4)
    yield normal(40, 64, 5), normal(45, 64, 6)  # fewer points than features


def test_the_same_as_fid_and_kid_of_torchmetrics(features):
    """Theirs rounds the one to float32; for the other it compares sets of one size, here one subset of all."""
    for x, y in cases(features):
        theirs = torchmetrics_says(FrechetInceptionDistance, x, y)
        assert frechet_distance(x, y) == pytest.approx(float(theirs), rel=1e-5)
        n = min(len(x), len(y))
        mean, _ = torchmetrics_says(KernelInceptionDistance, x[:n], y[:n], subsets=1, subset_size=n)
        assert kernel_distance(x[:n], y[:n]) == pytest.approx(float(mean), rel=1e-6, abs=1e-9)
