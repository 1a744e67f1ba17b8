"""How good are the images? The metrics that lesson 07 builds, in its order.

Images are float32 tensors of shape (N, 3, S, S) with values in [0, 1], as everywhere in
the course. Features are float64 tensors of shape (N, D): D numbers for each image.

    classifier = load_classifier()
    reference = face_features(classifier, labelled_faces("test")[0])
    drawn = face_features(classifier, generate(diffusion, n=400, seed=0))
    kernel_distance(drawn, reference), error_bar(drawn, reference)
    fault_rate(generate(diffusion, n=400, seed=0))
"""

from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from diffusion_utils import ROOT, TOY_FACES, Training, pick_accelerator, square_rgb

FACE_CLASSIFIER = ROOT / "pretrained" / "face_classifier"  # what train_classifier makes of the training faces

FAULT_DETECTOR = FACE_CLASSIFIER / "detector.safetensors"  # what train_classifier makes of faulty_faces

RESULTS = ROOT / "benchmarks" / "results.md"  # what the programs in benchmarks/ have measured

# The attributes that the classifier names, and how many classes each has.
HEADS = {"skin_tone": 8, "hair_style": 12, "hair_color": 11, "beard": 5, "glasses": 4,
         "hat": 4, "mouth": 2, "smile": 3, "clothes": 6, "background": 10}  # fmt: skip

# The heads of the detector: the colours of the eyes at the left and at the right of the image, and the fault.
DETECTOR_HEADS = {"left_eye": 6, "right_eye": 6, "fault": 5}
EYE_COLORS = "brown dark hazel green blue grey".split()
FAULTS = "none hair background eyes smear".split()


def labelled_faces(split="train", size=32):
    """The toy faces of a split with the attributes they were drawn with. Lesson 07.

    Returns `(faces, labels)`: (N, 3, size, size) in [0, 1], and a dict that has for each
    name in HEADS the class numbers (N,) of the same faces, in the same order. The column
    `smile`, a number from -1 to 1, becomes the classes 0 (down), 1 (straight) and 2 (up).
    """
    rows = datasets.load_dataset(str(TOY_FACES), split=split)
    faces = np.stack([np.asarray(square_rgb(face, size)) for face in rows["image"]])
    labels = {name: torch.tensor(rows[name][:]) for name in HEADS}
    labels["smile"] = 1 + (labels["smile"] > 1 / 3).long() - (labels["smile"] < -1 / 3).long()
    return torch.from_numpy(faces).permute(0, 3, 1, 2) / 255, labels


class FaceClassifier(nn.Module):
    """A small network that names the attributes of a face. Lesson 07.

    `heads`: the names of the attributes, and how many classes each has. forward: (N, 3, S, S) in [0, 1],
    S at least 32, gives a dict with the scores (N, heads[name]) of each. `features` gives the 64 numbers an
    image, (N, 64), from which all of them are computed. Images are averaged down to 32×32 first.
    """

    def __init__(self, heads=HEADS, widths=(48, 96), features=64):
        super().__init__()
        layers = [nn.AdaptiveAvgPool2d(32), nn.BatchNorm2d(3, affine=False), nn.PixelUnshuffle(2)]
        channels = 12
        for width in widths:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
        pixels = (16 // 2 ** len(widths)) ** 2
        layers += [nn.Flatten(), nn.Linear(channels * pixels, features), nn.BatchNorm1d(features), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(features, classes) for name, classes in heads.items()})

    def forward(self, images):
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


def classifier_loss(classifier, batch):
    """The sum of the cross-entropies of all heads; half of the batches are mirrored. Lesson 07.

    `batch`: images (N, 3, S, S) in [0, 1], and class numbers (N, 10) in the order of HEADS.
    """
    images, labels = batch
    scores = classifier(images.flip(3) if torch.rand(()) < 0.5 else images)
    return sum(nn.functional.cross_entropy(scores[name], labels[:, i]) for i, name in enumerate(HEADS))


def train_classifier(faces, labels, heads=HEADS, loss=classifier_loss, epochs=14, batch_size=64, seed=0):
    """Train a FaceClassifier on `faces` and `labels` as `labelled_faces` gives them. Lesson 07.

    The detector of faults is trained by it, too, with DETECTOR_HEADS and `detector_loss`, on what `faulty_faces`
    gives. Sets PyTorch's global seed. Returns the classifier in eval mode.
    """
    torch.manual_seed(seed)
    classifier = FaceClassifier(heads)
    images = TensorDataset(faces, torch.stack([labels[name] for name in heads], dim=1))
    loader = DataLoader(images, batch_size, shuffle=True, drop_last=True)
    recipe = dict(epochs=epochs, lr=4e-3, weight_decay=0.01, warmup_steps=200, cosine_decay=True, seed=seed)
    for _ in tqdm(Training(classifier, loader, loss=loss, ema_decay=0.9, **recipe), unit=" steps"):
        pass
    return classifier.eval()


def load_classifier(folder=FACE_CLASSIFIER):
    """The classifier whose weights lie in `folder`, in eval mode, on the GPU if there is one. Lesson 07.

    Raises FileNotFoundError without `model.safetensors` there, RuntimeError when weights are
    missing or of another shape.
    """
    classifier = FaceClassifier()
    classifier.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return classifier.to(pick_accelerator().device).eval()


def load_detector(path=FAULT_DETECTOR):
    """The detector of faults, a FaceClassifier with DETECTOR_HEADS, ready as `load_classifier` gives one. Lesson 07."""
    detector = FaceClassifier(DETECTOR_HEADS)
    detector.load_state_dict(load_file(path))
    return detector.to(pick_accelerator().device).eval()


def checked_images(images, smallest):
    """`images` as a tensor; ValueError where a metric of them would mean nothing. Lesson 07.

    They must have the shape (N, 3, S, S), S at least `smallest`, and lie in [0, 1], but for rounding.
    """
    images = torch.as_tensor(images).detach()
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < smallest:
        raise ValueError(f"images: (N, 3, S, S) with S from {smallest} on, not {tuple(images.shape)}")
    if not -0.001 <= images.min() <= images.max() <= 1.001:
        raise ValueError(f"images: values must lie in [0, 1], not from {images.min()} to {images.max()}")
    return images


@torch.no_grad()
def face_features(classifier, images, batch_size=100):
    """The classifier's features of `images` (N, 3, S, S): (N, 64), float64, on the CPU. Lesson 07.

    `images`: a tensor on any device or an array, in [0, 1]. The classifier is put in eval mode.
    Raises what `checked_images` raises.
    """
    classifier.eval()
    device = next(classifier.parameters()).device
    parts = checked_images(images, smallest=32).split(batch_size)
    return torch.cat([classifier.features(part.to(device, torch.float32)).cpu().double() for part in parts])


@torch.no_grad()
def attributes(classifier, images):
    """What the classifier sees on `images` (N, 3, S, S): a dict of class numbers (N,). Lesson 07."""
    features = face_features(classifier, images).float().to(next(classifier.parameters()).device)
    return {name: head(features).argmax(dim=1).cpu() for name, head in classifier.heads.items()}


def feature_pair(features, reference):
    """Both as float64 tensors (N, D) and (M, D) on the CPU, fit to be compared. Lesson 07.

    Raises ValueError for what is not a matrix, or has fewer than two rows.
    """
    pair = [torch.as_tensor(matrix).detach().cpu().double() for matrix in (features, reference)]
    for name, matrix in zip(("features", "reference"), pair):
        if matrix.ndim != 2 or len(matrix) < 2:
            raise ValueError(
                f"{name} must be a matrix with a row for each of 2 images or more, not {tuple(matrix.shape)}"
            )
    return pair


def frechet_distance(features, reference):
    """The squared Fréchet distance between `features` (N, D) and `reference` (M, D). Lesson 07.

    |m₁ - m₂|² + tr(C₁ + C₂ - 2(C₁C₂)^½) with means m and covariance matrices C; 0 is equal.
    The last trace is that of (C₁^½ C₂ C₁^½)^½, whose matrix is symmetric. The fewer images,
    the larger the number: compare only for the same N and M.

    Heusel et al. 2017, equation 6. Raises what `feature_pair` raises.
    """
    x, y = feature_pair(features, reference)
    c1, c2 = (torch.atleast_2d(points.T.cov()) for points in (x, y))
    values, vectors = torch.linalg.eigh(c1)
    root = vectors * values.clip(min=0).sqrt() @ vectors.T
    roots = torch.linalg.eigvalsh(root @ c2 @ root).clip(min=0).sqrt()
    return float((x.mean(0) - y.mean(0)).square().sum() + c1.trace() + c2.trace() - 2 * roots.sum())


def coarse_pixels(images):
    """`images` (N, 3, S, S) in [0, 1], averaged down to 16×16: (N, 768), float64, on the CPU. Lesson 07."""
    images = checked_images(images, smallest=16).cpu()
    return nn.functional.adaptive_avg_pool2d(images, 16).flatten(1).double()


def main_directions(reference):
    """The 64 directions in which the images `reference` (N, 3, S, S) differ most: (64, 768). Lesson 07."""
    pixels = coarse_pixels(reference)
    return torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False).Vh[:64]


def pixel_distance(images, reference, directions=None):
    """How far `images` are from `reference`, both (N, 3, S, S) in [0, 1]; 0 is equal. Lesson 07.

    The Fréchet distance of images averaged down to 16×16 and projected on the 64 main
    directions of `reference`. It needs no classifier, and sees coarse shapes and colours.
    `directions`: main_directions(reference), where many sets are compared with the same reference.
    Raises what `checked_images` and `feature_pair` raise.
    """
    directions = main_directions(reference) if directions is None else directions
    return frechet_distance(*(coarse_pixels(part) @ directions.T for part in (images, reference)))


def polynomial_kernel(a, b):
    """How alike each row of `a` (N, D) and each of `b` (M, D) are: (a·b / D + 1)³, (N, M). Lesson 07."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_within(a):
    """The mean of `polynomial_kernel` over all pairs of two different rows of `a` (N, D). Lesson 07."""
    pairs = polynomial_kernel(a, a)
    return (pairs.sum() - pairs.trace()) / (len(a) * (len(a) - 1))


def kernel_distance(features, reference):
    """The kernel distance between `features` (N, D) and `reference` (M, D). Lesson 07.

    The squared maximum mean discrepancy with the kernel k(a, b) = (a·b / D + 1)³, in the
    unbiased form: its expectation does not depend on N and M, and is 0 for two samples of
    the same distribution. So single values can be below 0.

    Bińkowski et al. 2018, section 4; Gretton et al. 2012, lemma 6. Raises what
    `feature_pair` raises.
    """
    x, y = feature_pair(features, reference)
    return float(kernel_within(x) + kernel_within(y) - 2 * polynomial_kernel(x, y).mean())


def group_distances(features, reference, groups=8):
    """The kernel distances of `groups` equal parts of `features`, less the part that `reference` has alone. Lesson 07.

    That part is the same for all groups, and drops out of every comparison of them.
    """
    x, y = feature_pair(features, reference)
    size = len(x) // groups
    if size < 2:
        raise ValueError(f"features: {len(x)} images are too few for {groups} groups of 2 or more")
    parts = x[: groups * size].split(size)
    return [float(kernel_within(part) - 2 * polynomial_kernel(part, y).mean()) for part in parts]


def error_bar(features, reference, groups=8):
    """The standard error of `kernel_distance(features, reference)`, from groups of images. Lesson 07.

    The distances of `groups` equal parts of `features` scatter; their standard deviation,
    divided by √groups, is the error of their mean. For the distance of all images at once the bar
    is on the safe side: near the floor its error is smaller. Raises what `feature_pair` raises.
    """
    return float(np.std(group_distances(features, reference, groups), ddof=1) / groups**0.5)


def paired_difference(features, others, reference, groups=8):
    """How much farther from `reference` are `features` than `others`? The difference and its error. Lesson 07.

    Row i of both, (N, D), must come from the same starting noise. What the noise does to both
    drops out of the difference, group by group, so its error is smaller than either error bar.
    """
    if len(features) != len(others):
        raise ValueError(f"features: {len(features)} rows, but {len(others)} in others; they must be pairs")
    gaps = np.subtract(*(group_distances(part, reference, groups) for part in (features, others)))
    return float(gaps.mean()), float(gaps.std(ddof=1) / groups**0.5)


def precision_recall(features, reference, k=3):
    """The share of `features` (N, D) that could be real, and of `reference` (M, D) that could be drawn. Lesson 07.

    Each point of a cloud has a ball that reaches to its k-th neighbour in that cloud. Precision is the share
    of `features` in a ball of `reference`, recall the share of `reference` in a ball of `features`. Both depend
    on N and M. Kynkäänniemi et al. 2019, equations 1 and 2. Raises what `feature_pair` raises.
    """
    x, y = feature_pair(features, reference)
    between = torch.cdist(x, y)
    radius_x, radius_y = (torch.cdist(part, part).kthvalue(k + 1).values for part in (x, y))
    precision = (between <= radius_y).any(dim=1).double().mean()
    recall = (between <= radius_x[:, None]).any(dim=0).double().mean()
    return float(precision), float(recall)


def faulty_faces(fault, indices, split="train", size=32):
    """Faces of a split, drawn with a fault of FAULTS, and what the detector has to say of them. Lesson 07.

    Returns `(faces, labels)`: (N, 3, size, size) in [0, 1], and a dict that has for each name in DETECTOR_HEADS
    the class numbers (N,), -100 for an eye whose colour cannot be told. "none" draws them as they are. A face
    that cannot have the fault is left out; indices beyond the shipped faces give new ones.
    """
    from data import draw_toy_faces as program

    drawn = [program.draw_fault(program.sample_attributes(split, i), fault, i) for i in indices]
    faces, left, right = zip(*[face for face in drawn if face is not None])
    pixels = np.stack([np.asarray(square_rgb(face, size)) for face in faces])
    numbers = {color: number for number, color in enumerate(EYE_COLORS)} | {None: -100}
    labels = {
        "left_eye": torch.tensor([numbers[color] for color in left]),
        "right_eye": torch.tensor([numbers[color] for color in right]),
        "fault": torch.full((len(faces),), FAULTS.index(fault)),
    }
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, labels


def hills(n, channels, cells, size):
    """Smooth random numbers, about as large as normal ones: (n, channels, size, size). Lesson 07."""
    corners = torch.randn(n, channels, cells, cells)
    return nn.functional.interpolate(corners, size, mode="bicubic", align_corners=True)


def disturbed(images):
    """`images` (N, 3, S, S) with the small faults that nobody minds: out of line, softer, uneven, noisy. Lesson 07.

    How strongly differs from image to image; PyTorch's global random numbers decide.
    """
    n, _, size, _ = images.shape
    bend, softness, light, grain = torch.rand(4, n, 1, 1, 1).to(images)
    still = nn.functional.affine_grid(torch.eye(2, 3).expand(n, 2, 3), images.shape, align_corners=False)
    places = still.to(images) + 0.02 * bend * hills(n, 2, 6, size).movedim(1, 3).to(images)
    bent = nn.functional.grid_sample(images, places, padding_mode="border", align_corners=False)
    blurred = nn.functional.avg_pool2d(bent, 3, stride=1, padding=1, count_include_pad=False)
    uneven = 0.03 * light * hills(n, 3, 5, size).to(images)
    noise = 0.04 * grain * torch.randn(images.shape).to(images)
    return (bent + 0.6 * softness * (blurred - bent) + uneven + noise).clip(0, 1)


def detector_loss(detector, batch):
    """The sum of the cross-entropies of the detector's heads on disturbed images, half of them mirrored. Lesson 07.

    `batch`: images (N, 3, S, S) in [0, 1], and class numbers (N, 3) in the order of DETECTOR_HEADS.
    """
    images, labels = batch
    if torch.rand(()) < 0.5:
        images, labels = images.flip(3), labels[:, [1, 0, 2]]
    scores = detector(disturbed(images))
    return sum(
        nn.functional.cross_entropy(scores[name], labels[:, i]) for i, name in enumerate(DETECTOR_HEADS)
    )


@torch.no_grad()
def find_faults(images, detector=None):
    """What a child would point at on `images` (N, 3, S, S) in [0, 1]: places in FAULTS (N,), 0 for none. Lesson 07.

    Images are averaged down to 32×32 first, so what only larger ones show is not seen.
    `detector`: load_detector(), which is loaded if you bring none. Raises what `checked_images` raises.
    """
    detector = detector or load_detector()
    features = face_features(detector, images).float().to(next(detector.parameters()).device)
    chances = detector.heads["fault"](features).softmax(dim=1).cpu()
    return torch.where(chances[:, 0] < 0.5, 1 + chances[:, 1:].argmax(dim=1), 0)


def fault_rate(images, detector=None):
    """The share of `images` (N, 3, S, S) in [0, 1] on which `find_faults` finds a fault. Lesson 07."""
    return float((find_faults(images, detector) > 0).double().mean())


def results(path=RESULTS):
    """What benchmarks/results.md holds: the text below each title, such as "Ablation (CPU)". Lesson 07."""
    sections = path.read_text(encoding="utf-8").split("\n## ")[1:]
    return dict(section.split("\n", 1) for section in sections)


def published(title):
    """The rows of a table in benchmarks/results.md that was made on a CPU: lists of its cells, as text. Lesson 07."""
    lines = results()[f"{title} (CPU)"].splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]


def nearest(points, reference):
    """For each of `points` (N, …) the closest of `reference` (M, …), images or features. Lesson 07.

    Returns `(distances, places)`, both (N,): Euclidean distances, and places in `reference`.
    """
    x, y = (torch.as_tensor(matrix).cpu().flatten(1).double() for matrix in (points, reference))
    distances, places = torch.cdist(x, y).min(dim=1)
    return distances, places
