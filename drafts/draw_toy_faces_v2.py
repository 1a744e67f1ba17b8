"""Draw the toy faces: 64x64 cartoon portraits, each made from a short list of attributes.

    python data/draw_toy_faces.py                      # write data/toy_faces/data/*.parquet
    python data/draw_toy_faces.py --sheet sheet.png    # only draw a sheet of 200 faces

Every shape is a signed distance field: an array that says, for each point of the image, how far
outside (positive) or inside (negative) of the shape it lies. Shapes are joined with minimum, cut
with maximum, and painted with an edge one sample wide, at twice the final resolution.
The arrays only go through + - * / sqrt min max, which IEEE arithmetic defines to the last bit, so
the same attributes give the same pixels on every machine and with every NumPy version.
"""

import argparse
import io
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64  # pixels of the finished image; all lengths below are in these pixels
SAMPLES = 2  # samples per pixel and direction while drawing
ZOOM = 1.2  # the figure is drawn this much larger than the lengths below say

# fmt: off
SKIN = {"tone_1": (253, 226, 208), "tone_2": (246, 207, 178), "tone_3": (234, 186, 148),
        "tone_4": (216, 162, 118), "tone_5": (190, 133, 91), "tone_6": (161, 106, 70),
        "tone_7": (130, 83, 56), "tone_8": (102, 65, 47)}
HAIR = {"black": (40, 34, 42), "dark_brown": (78, 50, 40), "brown": (122, 76, 46),
        "auburn": (150, 64, 40), "ginger": (216, 108, 44), "blond": (238, 192, 88),
        "grey": (158, 162, 172), "white": (236, 236, 240), "pink": (232, 104, 158),
        "blue": (66, 112, 200), "violet": (128, 84, 176)}
EYES = {"brown": (104, 62, 36), "dark": (56, 38, 36), "hazel": (140, 104, 48),
        "green": (72, 138, 84), "blue": (66, 130, 196), "grey": (108, 124, 138)}
CLOTHES = {"white": (244, 242, 236), "grey": (128, 134, 146), "black": (52, 54, 64),
           "navy": (48, 68, 120), "blue": (70, 136, 208), "teal": (38, 140, 138),
           "green": (96, 158, 84), "yellow": (244, 196, 70), "orange": (238, 132, 62),
           "red": (210, 66, 66), "pink": (238, 140, 160), "violet": (132, 96, 182)}
BACKGROUNDS = {"cream": (250, 236, 206), "sky": (150, 208, 240), "mint": (162, 222, 190),
               "rose": (248, 190, 196), "lavender": (200, 188, 238), "sun": (250, 210, 110),
               "coral": (244, 142, 116), "teal": (72, 164, 166), "blue": (84, 132, 204),
               "night": (54, 62, 104)}
# fmt: on

# The values of each categorical column, in the order of their class numbers.
CHOICES = {
    "skin_tone": list(SKIN),
    "head_shape": ["oval", "round", "long", "square"],
    "hair_style": "bald buzz short side_part quiff bob long wavy curly afro bun braids".split(),
    "hair_color": list(HAIR),
    "fringe": ["none", "straight", "swept"],
    "eye_color": list(EYES),
    "nose": ["button", "straight", "broad"],
    "mouth": ["closed", "open"],
    "beard": ["none", "stubble", "moustache", "goatee", "full"],
    "glasses": ["none", "round", "square", "sunglasses"],
    "hat": ["none", "beanie", "cap", "brimmed"],
    "hat_color": list(CLOTHES),
    "clothes": ["t_shirt", "shirt", "striped", "hoodie", "turtleneck", "jacket"],
    "clothes_color": list(CLOTHES),
    "background": list(BACKGROUNDS),
    "backdrop": ["flat", "gradient", "circle"],
}
NUMBERS = ["smile", "gaze", "head_x", "head_y", "head_scale", "head_tilt"]


# ---------------------------------------------------------------- choosing the attributes


def sample_attributes(split, index):
    """Return the attributes of face `index` of `split` ("train" or "test") as a dict.

    Only Random.random() is used: Python promises that its stream stays the same.
    """
    rng = random.Random(f"toy-faces-{split}-{index}")

    def pick(options, weights=None):
        weights = weights or [1] * len(options)
        point = rng.random() * sum(weights)
        for option, weight in zip(options, weights):
            point -= weight
            if point < 0:
                return option
        return options[-1]

    def between(low, high):
        return round(low + (high - low) * rng.random(), 2)

    a = {
        "skin_tone": pick(CHOICES["skin_tone"]),
        "head_shape": pick(CHOICES["head_shape"]),
        "hair_style": pick(CHOICES["hair_style"]),
        "hair_color": pick(list(HAIR), [4, 4, 4, 3, 3, 4, 3, 2, 1.5, 1.5, 1.5]),
    }
    has_fringe = a["hair_style"] in ("bob", "long", "wavy", "bun", "braids")
    a["fringe"] = pick(CHOICES["fringe"]) if has_fringe else "none"
    a["eye_color"], a["nose"] = pick(list(EYES)), pick(CHOICES["nose"])
    # The cube makes smiles more common than frowns.
    u = rng.random()
    a["smile"] = round(1 - 2 * u * u * u, 2)
    a["mouth"] = pick(["closed", "open"]) if a["smile"] > 0.2 else "closed"
    a["gaze"] = between(-1, 1)
    a["beard"] = pick(CHOICES["beard"], [75, 6, 6, 5, 8])
    a["glasses"] = pick(CHOICES["glasses"], [76, 9, 9, 6])
    # No hat fits over a quiff, an afro or a bun; the other nine styles make up for them.
    hat = pick(CHOICES["hat"], [73, 9, 9, 9])
    a["hat"] = "none" if a["hair_style"] in ("quiff", "afro", "bun") else hat
    a["clothes"], a["clothes_color"] = pick(CHOICES["clothes"]), pick(list(CLOTHES))
    hat_colors = [
        c
        for c in CLOTHES
        if _distance(CLOTHES[c], _hair_rgb(a)) > 80 and _distance(CLOTHES[c], SKIN[a["skin_tone"]]) > 70
    ]
    a["hat_color"] = pick(hat_colors)
    # Backgrounds that would swallow the hair, the head, the hat or the clothes are left out.
    edges = [SKIN[a["skin_tone"]], CLOTHES[a["clothes_color"]]]
    edges += [_hair_rgb(a)] * (a["hair_style"] != "bald")
    edges += [CLOTHES[a["hat_color"]]] * (a["hat"] != "none")
    clear = {b: min(_distance(rgb, edge) for edge in edges) for b, rgb in BACKGROUNDS.items()}
    left = [b for b in clear if clear[b] > 80] or [max(clear, key=clear.get)]
    # Some colours are left out more often than others; the weights make up for that.
    rarity = {"rose": 2.5, "coral": 2, "cream": 1.5, "sun": 1.5, "sky": 0.75, "mint": 0.6}
    a["background"] = pick(left, [rarity.get(b, 1) for b in left])
    a["backdrop"] = pick(CHOICES["backdrop"], [2, 1, 1])
    a["head_x"], a["head_y"] = between(-1.5, 1.5), between(-1, 1)
    a["head_scale"], a["head_tilt"] = between(0.95, 1.05), between(-4, 4)
    return {name: a[name] for name in [*CHOICES, *NUMBERS]}


def _distance(one, two):
    """How different two colours look, roughly: green counts most, blue least."""
    r, g, b = (p - q for p, q in zip(one, two))
    return math.sqrt(0.9 * r * r + 1.4 * g * g + 0.7 * b * b)


def _mix(one, two, share):
    return tuple(p + (q - p) * share for p, q in zip(one, two))


def _hair_rgb(a):
    """The hair colour, moved lighter or darker where it would be lost against the skin."""
    hair, skin = HAIR[a["hair_color"]], SKIN[a["skin_tone"]]
    goal = (20, 14, 16) if sum(hair) <= sum(skin) else (255, 236, 200)
    if a["hair_color"] == "white":  # a cooler white, since light skin is a warm one
        goal = (180, 192, 222)
    for share in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        moved = _mix(hair, goal, share)
        if _distance(moved, skin) > 72:
            break
    return moved


# ---------------------------------------------------------------- shapes and paint


class Plane:
    """Coordinates of all samples, and the shapes that can be drawn in them."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def ellipse(self, cx, cy, rx, ry):
        """Distance to an ellipse, close to exact near its edge, where painting needs it."""
        u, v = (self.x - cx) / rx, (self.y - cy) / ry
        near = np.sqrt(u * u + v * v)
        slope = np.sqrt((u / rx) * (u / rx) + (v / ry) * (v / ry))
        return near * (near - 1) / (slope + 1e-9)

    def box(self, cx, cy, rx, ry, corner):
        """Distance to a box with round corners."""
        u, v = abs(self.x - cx) - (rx - corner), abs(self.y - cy) - (ry - corner)
        p, q = np.maximum(u, 0), np.maximum(v, 0)
        return np.sqrt(p * p + q * q) + np.minimum(np.maximum(u, v), 0) - corner

    def discs(self, discs):
        """Distance to the union of discs given as (cx, cy, radius)."""
        return union(*(self.ellipse(cx, cy, r, r) for cx, cy, r in discs))

    def stroke(self, x0, y0, x1, y1, thick):
        """Distance to a straight line with round ends."""
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((self.x - x0) * dx + (self.y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        u, v = self.x - x0 - along * dx, self.y - y0 - along * dy
        return np.sqrt(u * u + v * v) - thick / 2

    def arc(self, cx, cy, half, bend, thick, slope=0.0):
        """Distance to a curved line, 2 * half wide, whose ends lie `bend` above its middle."""
        u = np.clip((self.x - cx) / half, -1, 1)
        v, w = self.y - cy + bend * u * u - slope * u, self.x - cx - half * u
        steep = (2 * bend * u - slope) / half
        v = v / np.sqrt(1 + steep * steep)
        return np.sqrt(v * v + w * w) - thick / 2

    def polygon(self, *points):
        """Distance to a convex polygon, corners given clockwise as seen on the image."""
        sides = []
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
            dx, dy = x1 - x0, y1 - y0
            sides.append(((self.x - x0) * dy - (self.y - y0) * dx) / math.sqrt(dx * dx + dy * dy))
        return both(*sides)


def union(*shapes):
    out = shapes[0]
    for shape in shapes[1:]:
        out = np.minimum(out, shape)
    return out


def both(*shapes):
    out = shapes[0]
    for shape in shapes[1:]:
        out = np.maximum(out, shape)
    return out


def melt(one, two, k):
    """Union with a fillet of size k instead of a crease."""
    h = np.maximum(k - abs(one - two), 0) / k
    return np.minimum(one, two) - h * h * k / 4


def paint(canvas, shape, color, alpha=1.0, soft=1 / SAMPLES):
    """Lay `color` (0-255) over the canvas inside `shape`; `soft` is the width of the edge."""
    # Only the rows and columns that the shape touches, which is much faster.
    touched = shape < soft / 2
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    if len(rows) == 0:
        return
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cover = np.clip(0.5 - shape[part] / soft, 0, 1) * alpha
    for channel, value in zip(canvas, color):
        channel[part] += cover * (value - channel[part])


# ---------------------------------------------------------------- the parts of a portrait


def _backdrop(canvas, page, a):
    rgb = BACKGROUNDS[a["background"]]
    canvas[:] = np.array(rgb, float)[:, None, None]
    light = _mix(rgb, (255, 255, 255), 0.3)
    if a["backdrop"] == "gradient":
        paint(canvas, page.y - 30, light, soft=70)
    elif a["backdrop"] == "circle":
        paint(canvas, page.ellipse(32, 33, 28, 28), light)


def _clothes(canvas, body, a, skin):
    """Shoulders and neck, whose shape is returned; `body` has its origin at the collar."""
    color = CLOTHES[a["clothes_color"]]
    dark = _mix(color, (24, 20, 50), 0.28)
    trim = (250, 246, 238) if sum(color) < 560 else (70, 92, 150)
    shoulders = union(body.ellipse(0, 18, 27, 17.5), body.box(0, 24, 27, 14, 10))
    neck = body.box(0, -2, 6.6, 9, 4)
    kind = a["clothes"]
    if kind == "hoodie":
        paint(canvas, body.ellipse(0, 1, 15, 7), dark)
    paint(canvas, shoulders, color)
    paint(canvas, both(shoulders, 17 - body.x + 0.3 * body.y), dark, 0.6)
    if kind == "striped":
        for y in (6.5, 13):
            paint(canvas, both(shoulders, abs(body.y - y - body.x * body.x * 0.006) - 1.6), trim)
    if kind in ("t_shirt", "striped", "hoodie"):
        paint(canvas, both(body.ellipse(0, -1, 10, 7.5), -body.y - 3), dark)
        paint(canvas, both(body.ellipse(0, -1.4, 8, 5.8), -body.y - 3), skin)
    if kind == "jacket":
        paint(canvas, both(abs(body.x) * 0.9 + body.y * 0.42 - 8.5, shoulders), dark)
        paint(canvas, both(abs(body.x) * 0.9 + body.y * 0.42 - 6.3, shoulders), trim)
    if kind == "shirt":
        paint(canvas, both(shoulders, abs(body.x) - 0.6), dark)
    if kind in ("shirt", "jacket"):
        paint(canvas, both(abs(body.x) * 0.85 + body.y * 0.53 - 4, -body.y - 3), skin)
    paint(canvas, neck, skin)
    if kind in ("shirt", "jacket"):
        collar = (255, 255, 255) if kind == "jacket" else _mix(color, (255, 255, 255), 0.5)
        for s in (-1, 1):
            points = [(s * 6.2, -2.5), (s * 9.6, 0.5), (s * 5.6, 7.2), (s * 0.7, 5.2)]
            flap = body.polygon(*points[::s])
            paint(canvas, flap - 0.5, dark)
            paint(canvas, flap, collar if sum(color) < 700 else (206, 212, 224))
    elif kind == "turtleneck":
        paint(canvas, body.box(0, 0, 8.6, 4.6, 2.5), color)
        paint(canvas, body.arc(0, 3.2, 8, 1, 1.2), dark)
    elif kind == "hoodie":
        for side in (-1, 1):
            paint(canvas, body.stroke(side * 4.2, 5, side * 4.6, 11, 1.6), trim)
    return neck


def _head(plane, a):
    """Distance to the head without ears, and its half width."""
    half, jaw, chin = {
        "oval": (15.2, 11.5, 18.5),
        "round": (16.2, 14, 17.6),
        "long": (14.4, 11.2, 19.8),
        "square": (15.2, 13.6, 18.6),
    }[a["head_shape"]]
    skull = plane.ellipse(0, -3, half, 15.5)
    if a["head_shape"] == "square":
        return melt(skull, plane.box(0, chin - 12, jaw, 12, 8.5), 5), half
    return melt(skull, plane.ellipse(0, chin - 13, jaw, 13), 6), half


# Rounded, so that no digit depends on the platform's sine.
def _ring(step, end):
    return [
        (round(math.sin(math.radians(d)), 3), round(-math.cos(math.radians(d)), 3))
        for d in range(-end, end + 1, step)
    ]


RING, FINE_RING = _ring(26, 130), _ring(16, 128)


def _back_hair(plane, a, half):
    """Hair behind the head, or None."""
    style = a["hair_style"]
    crown = plane.ellipse(0, -5, half + 2.6, 17)
    if style == "bob":
        return union(crown, plane.box(0, 2, half + 4, 14, 8))
    if style == "long":
        return union(crown, plane.box(0, 14, half + 3.2, 21, 8))
    if style == "wavy":
        side = half + 1.5
        return union(
            crown,
            plane.box(0, 12, half + 1.5, 18, 8),
            plane.discs(
                [
                    (s * (side + dx), y, 5)
                    for s in (-1, 1)
                    for dx, y in ((-0.5, -3), (1, 5), (-0.5, 13), (1, 21), (-1, 28))
                ]
            ),
        )
    if style == "curly":
        return union(crown, plane.discs([((half + 2.2) * sx, -3 + 17.5 * sy, 5.2) for sx, sy in RING]))
    if style == "afro":
        return plane.discs(
            [(0, -6, half + 6)] + [((half + 4.6) * sx, -6.5 + 19 * sy, 4.4) for sx, sy in FINE_RING]
        )
    if style == "bun":
        return plane.ellipse(0, -22.5, 7.5, 6.5)
    if style == "braids":
        return plane.discs(
            [(s * (half + 2.2 + 0.25 * k), 3 + 6 * k, 4.3 - 0.25 * k) for s in (-1, 1) for k in range(5)]
        )
    return None


def _front_hair(plane, a, half):
    """Hair on top of the head, cut out around the forehead, or None."""
    style, x, y = a["hair_style"], plane.x, plane.y
    if style == "bald":
        return None
    if style == "buzz":
        return both(plane.ellipse(0, -3.4, half + 0.5, 15.9), y - 1, -plane.ellipse(0, 6, half - 1.8, 16.5))
    if style in ("short", "side_part", "quiff"):
        cap = plane.ellipse(0, -4.5, half + 1, 16.8)
        face = plane.ellipse(0, 6, half - 1.6, 19)
        if style == "short":  # a flat top, a jagged hairline
            cap = melt(cap, plane.ellipse(0.5, -15, half - 1, 7.5), 2)
            return both(cap, y - 2, -both(face, -12.3 - y + 4.2 * abs(((x + 33) / 3.6) % 2 - 1)))
        if style == "side_part":
            cap = melt(cap, plane.ellipse(4, -16, half - 2.5, 7), 3)
            line = np.where(x > -7, -13.5 + 0.4 * (x + 7), -13.5 - 1.1 * (x + 7))
            return both(cap, y - 2, -both(face, line - y))
        top = melt(plane.ellipse(1, -17.5, 12.5, 6), plane.ellipse(8, -20.5, 6.5, 5), 5)
        return melt(both(cap, y - 1.5, -both(face, -10 - y)), top, 2)
    cap = plane.ellipse(0, -4.5, half + (0.8 if style == "bun" else 2), 17)
    low = {"bob": 6, "long": 8, "wavy": 8, "braids": 3, "bun": -1}.get(style, 1)
    face = plane.ellipse(0, 7.5, half - (1 if style in ("curly", "afro") else 1.8), 18)
    if a["fringe"] == "swept" or (a["fringe"] == "none" and low > 1):
        face = plane.ellipse(0, 7.5, half - 1.8, 22.5)
    if a["fringe"] == "straight":
        face = both(face, plane.y * -1 - 5.2 - 0.006 * x * x)
    elif a["fringe"] == "swept":
        face = both(face, -14 + 0.45 * abs(x + 7) - y)
    elif low > 1:  # parted in the middle
        face = both(face, -14.5 + 0.5 * abs(x) - y)
    hair = both(cap, y - low, -face)
    if style == "curly":
        hair = union(
            hair, plane.discs([(-11, -10.5, 4.6), (-4, -12.5, 4.8), (4, -12.5, 4.8), (11, -10.5, 4.6)])
        )
    return hair


def _eyes(canvas, plane, a, brow_color, brow_lift):
    ink = (46, 32, 36)
    for side in (-1, 1):
        cx, cy = side * 7, 1.2
        lid = plane.y - cy - 3.9 + 0.7 * max(a["smile"], 0)  # a smile lifts the lower lid
        eye = both(plane.ellipse(cx, cy, 4.8, 4.3), lid)
        paint(canvas, eye, (252, 250, 247))
        look = cx + 1.6 * a["gaze"]
        iris = plane.ellipse(look, cy - 0.2, 2.9, 3.1)
        paint(canvas, both(iris, eye), EYES[a["eye_color"]])
        paint(canvas, both(plane.ellipse(look, cy - 0.2, 1.35, 1.45), eye), (24, 18, 24))
        paint(canvas, plane.ellipse(look - 0.9, cy - 1.2, 0.75, 0.75), (255, 255, 255))
        paint(canvas, plane.arc(cx + side * 0.2, cy - 3.9, 4.8, -2.6, 1.4, slope=0.2 * side), ink)
        brow = plane.arc(cx + side * 0.4, -6.6 - brow_lift, 4, -1, 1.9, slope=0.7 * side)
        paint(canvas, brow, brow_color)


def _nose(canvas, plane, a, shade):
    if a["nose"] == "button":
        paint(canvas, plane.ellipse(0, 6, 2.4, 1.8), shade)
    elif a["nose"] == "broad":
        paint(canvas, plane.arc(0, 7.2, 3.4, 1.6, 1.8), shade)
    else:
        paint(canvas, union(plane.stroke(1.2, 1, 2, 6.2, 1.5), plane.stroke(2, 6.4, -1, 7, 1.5)), shade)


def _mouth(canvas, plane, a, skin):
    smile, y = a["smile"], 12
    lip = _mix(skin, (150, 30, 48), 0.5)
    line = _mix(lip, (60, 10, 20), 0.35) if sum(skin) > 300 else _mix(lip, (236, 130, 122), 0.55)
    bend = 2.8 * smile if smile > 0 else 1.7 * smile
    if a["mouth"] == "open":
        inside = both(plane.ellipse(0, y - 2.2, 5.6, 5.6), y - 1.9 - plane.y)
        paint(canvas, inside - 0.5, lip)
        paint(canvas, inside, (112, 28, 40))
        paint(canvas, both(inside, plane.y - y - 0.1), (255, 252, 248))
        paint(canvas, both(inside, plane.ellipse(0, y + 3.8, 3.2, 2)), (226, 104, 104))
        return
    if a["beard"] == "full" or a["beard"] == "goatee":
        paint(canvas, plane.arc(0, y + 0.5 + bend / 2, 4, bend, 2.6), _mix(lip, skin, 0.45))
    paint(canvas, plane.arc(0, y + bend / 2, 4.8, bend, 1.7), line)
    paint(canvas, plane.arc(0, y + 2.6 + bend / 2, 2, bend / 4, 1), lip, 0.35)


def _beard(canvas, plane, a, head, color, skin):
    kind = a["beard"]
    moustache = union(plane.arc(-2.6, 9.2, 2.8, -1.4, 2.6), plane.arc(2.6, 9.2, 2.8, -1.4, 2.6))
    if kind in ("stubble", "full"):
        grown = head - (1.4 if kind == "full" else 0)
        cheeks = plane.ellipse(0, -2, 12.2, 11)
        jaw = both(grown, -cheeks, 1 - plane.y)
        shadow = _mix(skin, _mix(color, (60, 56, 66), 0.5), 0.32)
        paint(canvas, jaw, color if kind == "full" else shadow)
    elif kind == "moustache":
        paint(canvas, moustache, color)
    elif kind == "goatee":
        paint(canvas, union(moustache, both(plane.ellipse(0, 14.2, 6.6, 6), 9 - plane.y)), color)


def _glasses(canvas, plane, a, half):
    kind = a["glasses"]
    if kind == "none":
        return
    frame = (44, 38, 48)
    for side in (-1, 1):
        if kind == "round":
            lens = plane.ellipse(side * 7.2, 1.2, 6, 6)
        else:
            lens = plane.box(side * 7.2, 1.4, 6.2, 5, 2.2)
        if kind == "sunglasses":
            paint(canvas, lens, (36, 38, 60), 0.88)
            glint = both(lens, abs(plane.x - side * 7.2 + plane.y + 1) - 1.4)
            paint(canvas, glint, (120, 130, 170), 0.5)
        else:
            paint(canvas, lens, (255, 255, 255), 0.14)
        paint(canvas, abs(lens) - 0.75, frame)
        paint(canvas, plane.stroke(side * 13.2, 0, side * (half + 0.8), -0.6, 1.4), frame)
    paint(canvas, plane.arc(0, 0, 1.4, -0.6, 1.5), frame)


def _hat(canvas, plane, a, half):
    color = CLOTHES[a["hat_color"]]
    dark, light = _mix(color, (24, 20, 50), 0.3), _mix(color, (255, 255, 255), 0.4)
    dome = both(plane.ellipse(0, -8, half + 2.8, 16), plane.y + 8)
    if a["hat"] == "beanie":
        paint(canvas, plane.discs([(0, -24.5, 4)]), light)
        paint(canvas, dome, color)
        paint(canvas, both(dome, 8.5 - plane.x - 0.3 * plane.y), dark, 0.5)
        paint(canvas, plane.box(0, -9, half + 3.4, 3.2, 2.6), light)
    elif a["hat"] == "cap":
        paint(canvas, dome, color)
        paint(canvas, both(dome, 8.5 - plane.x - 0.3 * plane.y), dark, 0.5)
        paint(canvas, plane.ellipse(0, -15.5, 4, 4), light)
        paint(canvas, plane.arc(0, -9, half + 1.2, -2, 5), dark)
    elif a["hat"] == "brimmed":
        paint(canvas, both(plane.box(0, -12, half + 0.5, 11.5, 7), plane.y + 6), color)
        paint(canvas, plane.box(0, -11, half + 0.5, 3, 0.5), dark)
        paint(canvas, plane.arc(0, -8.6, half + 4.6, -2.4, 4.4), color)


# ---------------------------------------------------------------- the portrait


def draw_face(attributes):
    """Draw one face and return it as a 64x64 RGB PIL image.

    `attributes` is a dict as sample_attributes returns it, or a row of the data set, where the
    categories are class numbers and the numbers are float32.
    """
    a = {k: attributes[k] if isinstance(attributes[k], str) else CHOICES[k][attributes[k]] for k in CHOICES}
    # Rounding undoes float32, so a row of the data set gives back the very same pixels.
    a.update((k, round(float(attributes[k]), 2)) for k in NUMBERS)

    n = SIZE * SAMPLES
    steps = (np.arange(n) + 0.5) / SAMPLES
    x, y = np.meshgrid(steps, steps)
    canvas = np.empty((3, n, n))
    page = Plane(x, y)
    body = Plane((x - 32 - 0.5 * a["head_x"]) / ZOOM, (y - 57 - 0.4 * a["head_y"]) / ZOOM)
    # Turn by a small angle; this form of sine and cosine needs no library function.
    t = a["head_tilt"] * 3.14159265 / 360
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    scale = ZOOM * a["head_scale"]
    u, v = (x - 32 - a["head_x"]) / scale, (y - 32.5 - a["head_y"]) / scale
    plane = Plane(cos * u + sin * v, cos * v - sin * u)

    skin = SKIN[a["skin_tone"]]
    shade = (skin[0] * 0.86, skin[1] * 0.76, skin[2] * 0.75)
    hair = _hair_rgb(a)
    hair_dark, hair_light = _mix(hair, (20, 8, 30), 0.28), _mix(hair, (255, 240, 220), 0.22)
    head, half = _head(plane, a)
    back, front = _back_hair(plane, a, half), _front_hair(plane, a, half)
    if a["hat"] != "none":  # nothing sticks out above the brim
        back = back if back is None else both(back, -9 - plane.y)
        front = front if front is None else both(front, -9 - plane.y)

    _backdrop(canvas, page, a)
    if back is not None:
        curls = a["hair_style"] in ("afro", "curly")
        paint(canvas, back, hair if curls or a["hair_style"] == "bun" else hair_dark)
        if curls:
            paint(canvas, both(back, -plane.ellipse(-7, -9, half + 6, 25)), hair_dark, 0.6)
    neck = _clothes(canvas, body, a, skin)
    paint(canvas, both(neck, Plane(plane.x, plane.y - 3).ellipse(0, 4, half - 2, 15)), shade)
    if a["hair_style"] in ("long", "wavy", "braids"):  # locks fall over the shoulders
        paint(canvas, both(back, 9.5 - abs(plane.x)), hair)
        if a["hair_style"] == "braids":
            for side in (-1, 1):
                paint(canvas, plane.box(side * (half + 2.8), 18, 3.4, 1.5, 1), (250, 246, 238))

    if a["hair_style"] in ("bob", "long", "wavy"):
        ears = head  # under the hair
    else:
        ears = union(plane.ellipse(-half - 0.4, 2, 3.1, 4.4), plane.ellipse(half + 0.4, 2, 3.1, 4.4))
    paint(canvas, ears, skin)
    paint(canvas, ears + 1.6, shade)
    paint(canvas, head, skin)
    # The light comes from the left: what a head shifted to the left does not cover is darker.
    away = _head(Plane(plane.x + 4.5, plane.y + 1.5), a)[0]
    paint(canvas, both(head, -away), shade, 0.55, soft=1.5)
    for side in (-1, 1):
        blush = plane.ellipse(side * 9.5, 8.5, 3.4, 2.6)
        paint(canvas, blush, _mix(skin, (232, 76, 84), 0.3), 0.8, soft=2)
    if front is not None:  # the hair throws a shadow on the forehead
        shadow = _front_hair(Plane(plane.x, plane.y - 1.8), a, half)
        paint(canvas, both(head, shadow), shade, 0.8)

    _nose(canvas, plane, a, shade)
    # Brows and beard are a little darker than the hair, and the dye is faint in them.
    dyed = a["hair_color"] in ("pink", "blue", "violet")
    brow = _mix(hair, (56, 36, 36), 0.6) if dyed else _mix(hair, (30, 20, 24), 0.3)
    beard = max((hair, hair_dark), key=lambda rgb: _distance(rgb, skin))
    calm = brow if dyed else _mix(hair, (56, 40, 36), 0.45)  # a bright beard looks like paint
    if _distance(calm, skin) > 50:
        beard = calm
    lift = 0.8 * max(a["smile"], 0) if a["hat"] == "none" else 0
    _beard(canvas, plane, a, head, beard, skin)
    _mouth(canvas, plane, a, skin)
    _eyes(canvas, plane, a, brow, lift)
    if front is not None:
        style = a["hair_style"]
        paint(canvas, front, _mix(hair, skin, 0.25) if style == "buzz" else hair)
        if style in ("short", "quiff"):  # the sides are cut shorter and look darker
            paint(canvas, both(front, -8 - plane.y, half - 4 - abs(plane.x)), hair_dark)
        elif style not in ("afro", "curly"):
            paint(canvas, both(front, -plane.ellipse(-5, -3, half + 2.5, 18)), hair_dark, 0.6)
        if a["hat"] == "none" and style != "buzz":
            band = abs(plane.ellipse(0, -2, half - 1.5, 15)) - 1.2
            paint(canvas, both(band, plane.x + 3, -plane.x - 11, front + 0.8), hair_light)
    _glasses(canvas, plane, a, half)
    if a["hat"] != "none":
        _hat(canvas, plane, a, half)

    # Average the samples of each pixel, with the sums written out to fix their order.
    mean = (canvas[:, 0::2, 0::2] + canvas[:, 0::2, 1::2] + canvas[:, 1::2, 0::2] + canvas[:, 1::2, 1::2]) / 4
    # Even values only: the eye does not see it, and the PNG files become a tenth smaller.
    even = 2 * np.floor(mean / 2 + 0.5).clip(0, 127)
    return Image.fromarray(np.ascontiguousarray(even.astype(np.uint8).transpose(1, 2, 0)))


# ---------------------------------------------------------------- faults that a child would point at

FAULTS = ["none", "hair", "background", "eyes", "smear"]  # what draw_fault can draw


def draw_fault(attributes, fault, seed):
    """Draw one face with a fault from FAULTS: (64x64 RGB PIL image, colour of the left eye, of the right).

    hair, background: two colours where one belongs. eyes: they are no pair, since one is of another colour,
    looks elsewhere, sits elsewhere, is gone or has a lens of its own. smear: parts run into each other, or
    something of another face shines through. Left and right are those of the image; an eye that cannot be
    told is None. "none" draws the face as it is. The same arguments give the same image. Returns None for a
    face that cannot have the fault, such as two hair colours on a bald head.
    """
    rng = random.Random(f"toy-faces-fault-{fault}-{seed}")
    a = {k: attributes[k] if isinstance(attributes[k], str) else CHOICES[k][attributes[k]] for k in CHOICES}
    a.update((k, round(float(attributes[k]), 2)) for k in NUMBERS)
    if (
        a["hair_style"] in ("bald", "buzz")
        and fault == "hair"
        or a["glasses"] == "sunglasses"
        and fault == "eyes"
    ):
        return None
    image = draw_face(a)
    if fault == "none":
        return image, *_eyes_of(a)
    face = np.asarray(image, float)
    draw = {"hair": _two_hairs, "background": _two_backgrounds, "eyes": _odd_eyes, "smear": _smeared}[fault]
    for _ in range(8):
        faulty, eyes = draw(face, a, rng)
        if _visible(face, faulty) >= (4 if fault == "eyes" else 24):
            return Image.fromarray((faulty + 0.5).clip(0, 255).astype(np.uint8)), *eyes
    return None


def _eyes_of(a):
    """The colours of the two eyes, where they can be seen."""
    return [None if a["glasses"] == "sunglasses" else a["eye_color"]] * 2


def _visible(one, two):
    """How many of the 32x32 blocks of pixels differ so much that one sees it."""
    difference = (one - two).reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean((1, 3))
    return int((abs(difference).max(axis=2) > 45).sum())


def _smooth(grid, size=SIZE):
    """A small grid of numbers, drawn out to size x size with soft transitions in between."""
    grid = np.array(grid, float)
    for _ in range(2):
        places = np.linspace(0, len(grid) - 1, size)
        low = places.astype(int).clip(max=len(grid) - 2)
        share = (places - low) ** 2 * (3 - 2 * (places - low))
        grid = (grid[low] * (1 - share)[:, None] + grid[low + 1] * share[:, None]).T
    return grid


def _field(rng, cells):
    """A smooth random field, about -1 to 1, with hills the size of SIZE / cells."""
    return _smooth([[2 * rng.random() - 1 for _ in range(cells + 1)] for _ in range(cells + 1)])


def _blot(rng, cx, cy, radius, soft):
    """A blot with a ragged edge: 1 inside, 0 outside, `soft` pixels between."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    far = np.sqrt((columns - cx) ** 2 + (rows - cy) ** 2) + 0.4 * radius * _field(rng, 8)
    return (0.5 - (far - radius) / soft).clip(0, 1)[..., None]


def _two_hairs(face, a, rng):
    return _two_colors(face, a, rng, "hair_color", HAIR), _eyes_of(a)


def _two_backgrounds(face, a, rng):
    return _two_colors(face, a, rng, "background", BACKGROUNDS), _eyes_of(a)


def _two_colors(face, a, rng, column, colors):
    """Parts in another colour, with an edge that is hard or soft, straight or ragged."""
    others = [name for name in colors if _distance(colors[name], colors[a[column]]) > 90]
    second = np.asarray(draw_face({**a, column: others[int(rng.random() * len(others))]}), float)
    differs = (abs(second - face).max(axis=2) > 40).astype(float)
    rows, columns = (np.mgrid[:SIZE, :SIZE] - SIZE / 2) / (SIZE / 2)
    for _ in range(8):
        tilt = [2 * rng.random() - 1 for _ in range(2)]
        edge = tilt[0] * rows + tilt[1] * columns + rng.random() * _field(rng, 5) + 0.8 * rng.random() - 0.4
        mask = (0.5 + edge * (1 + 14 * rng.random() ** 2)).clip(0, 1)
        if 0.25 < (mask * differs).sum() / max(differs.sum(), 1) < 0.75:
            break
    return face + mask[..., None] * (second - face)


def _odd_eyes(face, a, rng):
    """One eye is not like the other."""
    side = 1 if rng.random() < 0.5 else -1
    scale = ZOOM * a["head_scale"]
    cx, cy = 32 + a["head_x"] + side * 7 * scale, 32.5 + a["head_y"] + 1.2 * scale
    kind = ["color", "color", "gaze", "place", "gone", "lens"][int(rng.random() * 6)]
    other, radius = dict(a), (7.5, 6)
    if kind == "color":
        colors = [name for name in EYES if _distance(EYES[name], EYES[a["eye_color"]]) > 75]
        other["eye_color"] = colors[int(rng.random() * len(colors))]
    if kind in ("color", "gaze") and (kind == "gaze" or rng.random() < 0.5):
        other["gaze"] = a["gaze"] + (1.2 + 0.8 * rng.random()) * (-1 if a["gaze"] > 0 else 1)
    if kind == "place":
        other["head_y"] = a["head_y"] + (2.5 + 2 * rng.random()) * (1 if rng.random() < 0.5 else -1)
        other["head_x"] = a["head_x"] + 4 * rng.random() - 2
    if kind == "lens":
        choices = [name for name in CHOICES["glasses"] if name != a["glasses"]]
        other["glasses"] = choices[int(rng.random() * len(choices))]
        radius = (9, 9)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    far = np.sqrt(((columns - cx) / radius[0]) ** 2 + ((rows - cy) / radius[1]) ** 2)
    mask = (0.5 + (1 - far) * (2 + 4 * rng.random())).clip(0, 1)[..., None]
    if kind == "gone":  # washed out, up to a blot of skin
        second = _run(face, rng, 5 + 4 * rng.random())
    else:
        second = np.asarray(draw_face(other), float)
    eyes, place = _eyes_of(a), (side + 1) // 2
    eyes[place] = None if kind == "gone" else _eyes_of(other)[place]
    return face + mask * (second - face), eyes


def _run(face, rng, reach):
    """The face as if wiped with a wet finger: each pixel is a mean along a short line."""
    dx, dy = [(2 * rng.random() - 1) * reach for _ in range(2)]
    length = math.sqrt(dx * dx + dy * dy)
    dx, dy = dx * reach / length, dy * reach / length
    rows, columns = np.mgrid[:SIZE, :SIZE]
    wiped = np.zeros_like(face)
    for share in np.linspace(-1, 1, 11):
        moved = (rows + share * dy).round().astype(int), (columns + share * dx).round().astype(int)
        wiped += face[moved[0].clip(0, SIZE - 1), moved[1].clip(0, SIZE - 1)] / 11
    return wiped


def _smeared(face, a, rng):
    """A part of the head runs, is pushed about, shows another face, or is covered with blotches."""
    kind = ["run", "push", "ghost", "blotches"][int(rng.random() * 4)]
    if kind == "run":
        second = _run(face, rng, 4 + 5 * rng.random())
    elif kind == "push":
        rows, columns = np.mgrid[:SIZE, :SIZE]
        reach = 7 + 6 * rng.random()
        cells = 4 + int(rng.random() * 8)
        moved = [(grid + reach * _field(rng, cells)).round().astype(int) for grid in (rows, columns)]
        second = face[moved[0].clip(0, SIZE - 1), moved[1].clip(0, SIZE - 1)]
    elif kind == "ghost":
        other = sample_attributes("ghost", int(rng.random() * 10**6))
        if rng.random() < 0.7:  # of the same colours, so that only the shapes disagree
            kept = ["skin_tone", "hair_color", "background", "backdrop", "eye_color"]
            if rng.random() < 0.5:  # half a beard, half a hat
                kept += [name for name in CHOICES if rng.random() < 0.8] + NUMBERS
            other |= {name: a[name] for name in kept}
        second = np.asarray(draw_face(other), float)
        second = face + (0.35 + 0.65 * rng.random()) * (second - face)
    else:
        colors = [160 * (0.5 + rng.random()) * _field(rng, 6 + int(rng.random() * 10)) for _ in range(3)]
        share = rng.random()  # from grey to many colours
        second = face + np.stack([share * color + (1 - share) * colors[0] for color in colors], axis=2) / 2
    cx, cy = 32 + 24 * rng.random() - 12, 30 + 32 * rng.random() - 16
    mask = _blot(rng, cx, cy, 9 + 14 * rng.random(), 2 + 6 * rng.random())
    return face + mask * (second.clip(0, 255) - face), [None, None]


def draw_sheet(rows=10, columns=20, split="train", first=0):
    """Return one image with rows x columns faces of a split."""
    sheet = Image.new("RGB", (columns * SIZE, rows * SIZE))
    for k in range(rows * columns):
        face = draw_face(sample_attributes(split, first + k))
        sheet.paste(face, (k % columns * SIZE, k // columns * SIZE))
    return sheet


def make_dataset(split, count):
    """Return the first `count` faces of a split as a datasets.Dataset."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(
        {
            "image": ImageFeature(),
            **{name: ClassLabel(names=names) for name, names in CHOICES.items()},
            **{name: Value("float32") for name in NUMBERS},
        }
    )
    rows = []
    for i in range(count):
        attributes = sample_attributes(split, i)
        png = io.BytesIO()
        draw_face(attributes).save(png, "PNG", optimize=True)
        image = {"bytes": png.getvalue(), "path": f"{split}-{i:04d}.png"}
        rows.append({"image": image, **attributes})
    return Dataset.from_list(rows, features=features)


def main():
    parser = argparse.ArgumentParser(description="Draw the toy faces data set.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "toy_faces")
    parser.add_argument("--train", type=int, default=3000, help="number of training faces")
    parser.add_argument("--test", type=int, default=1000, help="number of test faces")
    parser.add_argument("--sheet", type=Path, help="only draw 200 faces into this PNG file")
    options = parser.parse_args()
    if options.sheet:
        draw_sheet().save(options.sheet, optimize=True)
        return
    (options.out / "data").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", options.train), ("test", options.test)):
        path = options.out / "data" / f"{split}-00000-of-00001.parquet"
        make_dataset(split, count).to_parquet(path)
        print(f"{path.name}: {count} faces, {path.stat().st_size / 1e6:.1f} MB")
    draw_sheet(6, 16).save(options.out / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
