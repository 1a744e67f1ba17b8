// What can be drawn: three shapes, words, and strokes, which a link can hold. The frame reaches from -WIDE to WIDE and
// from -HIGH to HIGH; what is drawn has POINTS points at most.

import { startingNoise } from "../diffusion.js";

export const [WIDE, HIGH] = [4.9, 2.7];
export const POINTS = 300;
export const CLOUDS = [30, 45, 60, 75, 90]; // the points of each: 10, 15, 20, 25 and 30 percent

// The middle of each cloud.
export const middles = CLOUDS.map((_, i) => {
  const angle = (2 * Math.PI * i) / CLOUDS.length;
  return [2.1 * Math.sin(angle), 1.95 * Math.cos(angle) - 0.15];
});

// Put the places [x, y] into one array, each moved a little at random.
function scattered(places, width) {
  const noise = startingNoise(6, 2 * places.length);
  return Float32Array.from(places.flat(), (value, i) => value + width * noise[i]);
}

// Shapes -----------------------------------------------------------------------------------------------------

const evenly = (count, place) => Array.from({ length: count }, (_, i) => place((i + 0.5) / count));

export const shapes = {
  smiley() {
    const head = evenly(170, (share) => [2.2 * Math.cos(2 * Math.PI * share), 2.2 * Math.sin(2 * Math.PI * share)]);
    const mouth = evenly(70, (share) => {
      const angle = Math.PI * (1.14 + 0.72 * share);
      return [1.35 * Math.cos(angle), 1.35 * Math.sin(angle) - 0.05];
    });
    const eye = (side) =>
      evenly(30, (share) => {
        const [angle, far] = [2.4 * 30 * share, Math.sqrt(share)]; // a sunflower's seeds
        return [side * 0.75 + 0.2 * far * Math.cos(angle), 0.7 + 0.33 * far * Math.sin(angle)];
      });
    return scattered([...head, ...mouth, ...eye(-1), ...eye(1)], 0.015);
  },
  spiral() {
    return scattered(
      evenly(POINTS, (share) => {
        const [angle, far] = [6 * Math.PI * Math.sqrt(share), 2.4 * Math.sqrt(share)];
        return [far * Math.cos(angle), far * Math.sin(angle)];
      }),
      0.02,
    );
  },
  clouds() {
    return scattered(CLOUDS.flatMap((count, i) => evenly(count, () => middles[i])), 0.17);
  },
};

// For each cloud the share of `places` to which its middle is the nearest.
export function shares(places) {
  const counts = CLOUDS.map(() => 0);
  for (let n = 0; n < places.length; n += 2) {
    const distances = middles.map(([x, y]) => Math.hypot(places[n] - x, places[n + 1] - y));
    counts[distances.indexOf(Math.min(...distances))] += 1;
  }
  return counts.map((count) => (2 * count) / places.length);
}

// Words ------------------------------------------------------------------------------------------------------

// The numbers of the pixels in the middle of what is inked: those which no neighbour surpasses in its way to the
// nearest pixel without ink. Rows of `ink` have `width` pixels. What has hardly a middle line is returned whole.
export function middle(ink, width) {
  const depth = Float32Array.from(ink, (inked) => (inked ? Infinity : 0));
  const deepen = (i, ways) => {
    for (const [way, length] of ways) depth[i] = Math.min(depth[i], (depth[i + way] ?? 0) + length);
  };
  const ahead = [[1, 1], [width - 1, Math.SQRT2], [width, 1], [width + 1, Math.SQRT2]]; // to neighbours, and how far
  const behind = ahead.map(([way, length]) => [-way, length]);
  for (let i = 0; i < ink.length; i++) deepen(i, behind);
  for (let i = ink.length - 1; i >= 0; i--) deepen(i, ahead);
  const inked = [...ink.keys()].filter((i) => ink[i]);
  const highest = inked.filter((i) => [...ahead, ...behind].every(([way]) => depth[i] >= depth[i + way] - 0.3));
  const usual = highest.map((i) => depth[i]).sort((one, other) => one - other)[highest.length >> 1];
  const ridge = highest.filter((i) => depth[i] > 0.55 * usual); // without the forks at the ends of letters
  return ridge.length > inked.length / 50 ? ridge : inked;
}

// At most `count` of `places`, [x, y] of pixels with sides of `side`, spread as evenly as they go: none is taken that
// lies too near to one that is taken already, and too near is less and less.
export function spreadOver(places, count, side) {
  const order = startingNoise(4, places.length);
  const shuffled = places.map((place, i) => [order[i], place]).sort(([one], [other]) => one - other);
  const tried = shuffled.slice(0, 6000).map(([, place]) => place);
  const taken = [];
  for (let gap = 0.3; taken.length < count && gap > side / 2; gap *= 0.93) {
    for (const [x, y] of tried) {
      const free = taken.every(([u, v]) => (x - u) ** 2 + (y - v) ** 2 > gap ** 2);
      if (free && taken.length < count) taken.push([x, y]);
    }
  }
  return taken;
}

// Strokes ----------------------------------------------------------------------------------------------------
// A stroke is a list of places [x, y] at which it begins, bends and ends.

const gapBetween = ([x, y], [u, v]) => Math.hypot(x - u, y - v);

// A stroke without the bends that a straight line replaces, to within `tolerance` (Douglas and Peucker 1973).
export function simplified(stroke, tolerance = 0.015) {
  const [first, last] = [stroke[0], stroke.at(-1)];
  const length = gapBetween(first, last);
  let farthest = 0;
  let far = tolerance;
  for (let i = 1; i < stroke.length - 1; i++) {
    const [x, y] = [stroke[i][0] - first[0], stroke[i][1] - first[1]];
    const across = Math.abs(x * (last[1] - first[1]) - y * (last[0] - first[0])) / length;
    const distance = length > 0 ? across : Math.hypot(x, y);
    if (distance > far) {
      farthest = i;
      far = distance;
    }
  }
  if (farthest === 0) return length > tolerance ? [first, last] : [first];
  const before = simplified(stroke.slice(0, farthest + 1), tolerance);
  return [...before.slice(0, -1), ...simplified(stroke.slice(farthest), tolerance)];
}

// Places along one stroke at about `gap` from one to the next, both ends included.
function along(stroke, gap) {
  const lengths = stroke.slice(1).map((place, i) => gapBetween(stroke[i], place));
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const pieces = Math.floor(total / gap);
  let corner = 0;
  let passed = 0; // the length up to that corner
  return Array.from({ length: pieces + 1 }, (_, piece) => {
    const target = pieces > 0 ? (piece * total) / pieces : 0;
    while (corner < lengths.length - 1 && passed + lengths[corner] < target) {
      passed += lengths[corner];
      corner += 1;
    }
    const [x, y] = stroke[corner];
    const [u, v] = stroke[corner + 1] ?? stroke[corner];
    const share = lengths[corner] > 0 ? Math.min(1, (target - passed) / lengths[corner]) : 0;
    return [x + share * (u - x), y + share * (v - y)];
  });
}

// The points of all strokes, as near to each other as POINTS points allow, but not nearer than 0.05. Of more strokes than
// points every so many get one, the first and the last among them.
export function pointsAlong(strokes) {
  if (strokes.length > POINTS) {
    const begins = Array.from({ length: POINTS }, (_, i) => {
      return strokes[Math.round((i * (strokes.length - 1)) / (POINTS - 1))][0];
    });
    return Float32Array.from(begins.flat());
  }
  for (let gap = 0.05; ; gap *= 1.03) {
    const places = strokes.flatMap((stroke) => along(stroke, gap));
    if (places.length <= POINTS) return Float32Array.from(places.flat());
  }
}

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const MOST = 16_000; // letters of strokes in a link; nobody draws so many

// Strokes as letters that a link can hold: two for each number, full stops between strokes.
export function encoded(strokes) {
  const letters = (value, reach) => {
    const whole = Math.round(4095 * Math.min(1, Math.max(0, (value / reach + 1) / 2)));
    return LETTERS[whole >> 6] + LETTERS[whole & 63];
  };
  return strokes.map((stroke) => stroke.map(([x, y]) => letters(x, WIDE) + letters(y, HIGH)).join("")).join(".");
}

// The strokes that such letters hold; null where they hold none.
export function decoded(letters) {
  if (letters.length > MOST || !/^([\w-]{4})+(\.([\w-]{4})+)*$/.test(letters)) return null;
  const number = (pair, reach) => {
    const whole = 64 * LETTERS.indexOf(pair[0]) + LETTERS.indexOf(pair[1]);
    return reach * ((2 * whole) / 4095 - 1);
  };
  return letters.split(".").map((stroke) => {
    return stroke.match(/.{4}/g).map((place) => [number(place.slice(0, 2), WIDE), number(place.slice(2), HIGH)]);
  });
}
