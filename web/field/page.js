// What the page of points does: the plane and what is seen in it, the flow as it plays, the pen, settings and the link.

import { startingNoise, timesAlong } from "../diffusion.js";
import { HIGH, POINTS, WIDE, decoded, encoded, middle, middles, pointsAlong, shapes, shares } from "./drawings.js";
import { simplified, spreadOver } from "./drawings.js";
import { LAST, ddim, ddpm, guessOnTheLine, noiseShare, onTheLine, perfectPredict, sample } from "./field.js";
import { crowdSize, weightsBehind } from "./field.js";

const at = (id) => document.getElementById(id);
const PARTICLES = 1000;
const COLOURS = 16; // of the dots, from left to right in the noise
const SEEN = 3.1; // how far the plane is seen to the left and to the right, at least
const LETTERS_WIDE = 3.6; // how far a word reaches
const WHILE_DRAWING = 0.62; // the moment whose arrows are shown under the pen
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const plane = at("plane");
const context = plane.getContext("2d");

let points = new Float32Array(0); // the drawing
let predict = null; // the perfect one for it
let film = null; // of the flow, as far as it is computed: noisy points, where they are shown, and guesses
let moment = 0; // from 0, noise, to 1
let playing = false;
let followed = -1; // the number of the dot that is looked at; -1 for none
let strokes = []; // of the reader's own drawing
let stroke = null; // the one under the pen
let pen = null; // where the pen of the keyboard is
let touched = null; // where the pointer went down: the event and the place
let waiting = 0; // the timer between the last stroke and the flow
let view = { width: 1, height: 1, scale: 1, spacing: 1, grid: new Float32Array(0) };
let colours = {};
let notice = ""; // what the page has to say for a moment, in place of its line on the flow
let noticed = 0; // the timer that ends it

const whole = (id) => Number(at(id).value);
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const isDrawing = () => chosen("drawing") === "own" && (stroke !== null || waiting !== 0 || points.length === 0);
const timeAt = (share) => 1 + share * (LAST - 1);
const say = (sentence) => {
  if (at("status").textContent !== sentence) at("status").textContent = sentence; // what is the same is not read again
};

// Say `sentence` for a few seconds.
function tell(sentence) {
  notice = sentence;
  clearTimeout(noticed);
  noticed = setTimeout(() => {
    notice = "";
    refresh();
  }, 4000);
  refresh();
}

// The drawing --------------------------------------------------------------------------------------------------

// The points of a word: along the middle of its letters, which are as large as they fit.
function wordPoints(word) {
  const perUnit = 60;
  const [width, height] = [2 * LETTERS_WIDE * perUnit, 2 * HIGH * perUnit];
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const letters = canvas.getContext("2d", { willReadFrequently: true });
  const font = (size) => `${size}px Verdana, "DejaVu Sans", Arial, Helvetica, sans-serif`;
  letters.font = font(100);
  const wide = letters.measureText(word).width;
  letters.font = font(Math.min(200, (100 * (width - 16)) / Math.max(1, wide)));
  [letters.textAlign, letters.textBaseline] = ["center", "middle"];
  letters.fillText(word, width / 2, height / 2);
  const { data } = letters.getImageData(0, 0, width, height);
  const ink = Array.from({ length: width * height }, (_, i) => data[4 * i + 3] > 127);
  const places = middle(ink, width).map((i) => {
    return [(i % width) / perUnit - LETTERS_WIDE, HIGH - Math.floor(i / width) / perUnit];
  });
  return Float32Array.from(spreadOver(places, POINTS, 1 / perUnit).flat());
}

function setPoints(next) {
  points = next;
  predict = points.length ? perfectPredict(points) : null;
  setFilm();
}

// What the choice of a drawing brings with it; a pen that is down is lifted.
function takeDrawing() {
  clearTimeout(waiting);
  [waiting, stroke, touched] = [0, null, null];
  const drawing = chosen("drawing");
  at("word-field").hidden = drawing !== "word";
  at("clear").hidden = drawing !== "own";
  plane.classList.toggle("drawing", drawing === "own");
  if (drawing === "own") setPoints(pointsAlong(strokes));
  else if (drawing === "word") {
    const letters = wordPoints(at("word").value);
    setPoints(letters.length ? letters : wordPoints("?")); // spaces and the like leave no ink
  } else setPoints(shapes[drawing]());
}

// The flow -----------------------------------------------------------------------------------------------------

// A film that holds the noise alone; `compute` does the rest as it is needed.
function setFilm() {
  const noise = startingNoise(whole("seed"), 2 * PARTICLES);
  const times = timesAlong([1, LAST], whole("steps"));
  const step = chosen("sampler") === "ddpm" ? ddpm(whole("seed")) : ddim;
  const rest = predict && sample(predict, noise, times, step);
  film = { times, rest, noisy: [noise], places: [onTheLine(noise, 1)], images: [] };
  fit();
}

function compute(steps) {
  while (film.rest && film.images.length < steps) {
    const [noisy, image] = film.rest.next().value;
    film.noisy.push(noisy);
    film.images.push(image);
    const drawn = film.images.length === film.times.length - 1; // what is drawn is the last guess (lesson 05)
    film.places.push(drawn ? image : onTheLine(noisy, film.times[film.images.length]));
  }
}

// The step that is under way at `share` of the flow, and how much of it is done. Within a step the noise falls, and
// the dots go straight.
function stepAt(share) {
  const steps = film.times.length - 1;
  const number = Math.min(steps - 1, Math.floor(share * steps + 1e-9));
  const [from, to] = [noiseShare(film.times[number]), noiseShare(film.times[number + 1])];
  return [number, Math.min(1, Math.max(0, (from - noiseShare(timeAt(share))) / (from - to)))];
}

// Where the dots are at `share` of the flow.
function placesAt(share) {
  if (!predict) return film.places[0];
  const [number, done] = stepAt(share);
  compute(number + 1);
  const next = film.places[number + 1];
  return film.places[number].map((value, i) => value + done * (next[i] - value));
}

// What is seen -------------------------------------------------------------------------------------------------

// Give the canvas the pixels of the screen, and find the places of the arrows.
function fit() {
  const { clientWidth: width, clientHeight: height } = plane;
  const sharp = Math.min(2, devicePixelRatio || 1);
  if (plane.width !== Math.round(width * sharp)) plane.width = Math.round(width * sharp);
  if (plane.height !== Math.round(height * sharp)) plane.height = Math.round(height * sharp);
  const reach = points.reduce((most, value, i) => (i % 2 ? most : Math.max(most, Math.abs(value) + 0.1)), SEEN);
  const scale = Math.min(height / (2 * HIGH), width / (2 * reach));
  const spacing = Math.max(26, Math.sqrt((width * height) / 400));
  const [columns, rows] = [Math.floor(width / spacing), Math.floor(height / spacing)];
  const grid = Float32Array.from({ length: 2 * columns * rows }, (_, i) => {
    const place = i >> 1;
    if (i % 2) return ((rows - 1) / 2 - Math.floor(place / columns)) * (spacing / scale);
    return ((place % columns) - (columns - 1) / 2) * (spacing / scale);
  });
  view = { width, height, scale, spacing, grid, sharp };
}

const across = (x) => view.width / 2 + view.scale * x;
const down = (y) => view.height / 2 - view.scale * y;

function takeColours() {
  const style = getComputedStyle(document.documentElement);
  const numbers = (name) => style.getPropertyValue(name).trim().split(" ").map(Number);
  const between = [numbers("--dot-from"), numbers("--dot-between"), numbers("--dot-to")];
  const dots = Array.from({ length: COLOURS }, (_, i) => {
    const way = (2 * i) / (COLOURS - 1); // from 0, the first of the three, to 2, the last
    const first = Math.min(1, Math.floor(way));
    const [one, other] = between.slice(first, first + 2);
    return `rgb(${one.map((value, c) => Math.round(value + (way - first) * (other[c] - value))).join(" ")})`;
  });
  const ink = (name) => (alpha) => `rgb(${numbers(name).join(" ")} / ${alpha})`;
  const paper = style.getPropertyValue("--code");
  colours = { dots, paper, arrow: ink("--arrow"), point: ink("--point"), lit: ink("--lit"), mark: ink("--mark") };
}

function disc(x, y, radius) {
  context.moveTo(across(x) + radius, down(y));
  context.arc(across(x), down(y), radius, 0, 2 * Math.PI);
}

function showPoints(alpha, radius) {
  context.fillStyle = colours.point(alpha);
  context.beginPath();
  for (let i = 0; i < points.length; i += 2) disc(points[i], points[i + 1], radius);
  context.fill();
}

// The exact field: from every place of the grid an arrow towards the guess there.
function showArrows(time) {
  const { grid, spacing } = view;
  const image = guessOnTheLine(predict, grid, time);
  context.strokeStyle = colours.arrow(Math.min(0.9, 0.55 * view.sharp));
  context.lineWidth = 1 / view.sharp; // a line of one pixel is drawn several times as fast as a wider one
  context.beginPath();
  for (let i = 0; i < grid.length; i += 2) {
    const [x, y] = [image[i] - grid[i], grid[i + 1] - image[i + 1]]; // of the screen, where y points down
    const distance = Math.hypot(x, y) || 1;
    const length = 0.7 * spacing * (1 - Math.exp(-3 * distance));
    const [right, below] = [(length * x) / distance, (length * y) / distance];
    const [tipX, tipY] = [across(grid[i]) + right / 2, down(grid[i + 1]) + below / 2];
    context.moveTo(tipX - right, tipY - below);
    context.lineTo(tipX, tipY);
    context.moveTo(tipX - 0.3 * right + 0.17 * below, tipY - 0.3 * below - 0.17 * right);
    context.lineTo(tipX, tipY);
    context.lineTo(tipX - 0.3 * right - 0.17 * below, tipY - 0.3 * below + 0.17 * right);
  }
  context.stroke();
}

// A thousand dots, each with a little tail while they move, in the colours of where they began.
function showDots() {
  const places = placesAt(moment);
  const before = playing ? placesAt(Math.max(0, moment - 0.012)) : places;
  const groups = Array.from({ length: COLOURS }, () => []);
  for (let i = 0; i < places.length; i += 2) {
    const group = Math.floor(COLOURS * (0.5 + film.places[0][i] / 4));
    groups[Math.min(COLOURS - 1, Math.max(0, group))].push(i);
  }
  context.globalAlpha = followed < 0 ? 0.95 : 0.8;
  context.lineCap = "round";
  context.lineWidth = Math.max(2.6, 0.046 * view.scale);
  for (const [number, group] of groups.entries()) {
    context.strokeStyle = colours.dots[number];
    context.beginPath();
    for (const i of group) {
      context.moveTo(across(before[i]), down(before[i + 1]));
      context.lineTo(across(places[i]) + 0.01, down(places[i + 1]));
    }
    context.stroke();
  }
  context.globalAlpha = 1;
  return places;
}

// The dot that is followed: its path, the points that may lie behind it, and their mean, to which it is heading.
function showFollowed(places) {
  const [number] = stepAt(moment);
  const n = 2 * followed;
  const [noisy, image] = [film.noisy[number], film.images[number]];
  const weights = weightsBehind(points, noisy[n], noisy[n + 1], film.times[number]);
  const [x, y] = [places[n], places[n + 1]];
  context.lineWidth = 1;
  for (const [i, weight] of weights.entries()) {
    if (weight < 0.001) continue;
    const light = Math.sqrt(weight); // so that many weak ones are seen beside few strong ones
    context.strokeStyle = colours.lit(Math.min(0.7, 0.04 + light));
    context.beginPath();
    context.moveTo(across(x), down(y));
    context.lineTo(across(points[2 * i]), down(points[2 * i + 1]));
    context.stroke();
    context.fillStyle = colours.lit(Math.min(1, 0.2 + 4 * light));
    context.beginPath();
    disc(points[2 * i], points[2 * i + 1], 1.6 + 8 * light);
    context.fill();
  }
  context.strokeStyle = colours.mark(0.9);
  context.lineWidth = 2;
  context.lineJoin = "round";
  context.beginPath();
  for (const earlier of film.places.slice(0, number + 1)) context.lineTo(across(earlier[n]), down(earlier[n + 1]));
  context.lineTo(across(x), down(y));
  disc(film.places[0][n], film.places[0][n + 1], 3);
  context.stroke();
  showGoal([x, y], [image[n], image[n + 1]], weights);
}

function showGoal([x, y], [u, v], weights) {
  context.strokeStyle = colours.lit(1);
  context.lineWidth = 2.5;
  context.setLineDash([2, 6]);
  context.beginPath();
  context.moveTo(across(x), down(y));
  context.lineTo(across(u), down(v));
  context.stroke();
  context.setLineDash([]);
  for (const [right, up, radius, fill] of [[u, v, 6.5, colours.lit(1)], [x, y, 5.5, colours.mark(1)]]) {
    context.fillStyle = fill;
    context.strokeStyle = colours.paper;
    context.lineWidth = 2;
    context.beginPath();
    disc(right, up, radius);
    context.fill();
    context.stroke();
  }
  const candidates = crowdSize(weights);
  const apart = Math.hypot(across(x) - across(u), down(y) - down(v));
  if (apart > 34) label("this dot", x, y, colours.mark(1), y >= v ? -1 : 1);
  const words = candidates > 1 ? `mean of ${candidates} points` : "one point";
  if (moment < 1) label(words, u, v, colours.lit(1), y >= v ? 1 : -1);
}

// Write `text` above (side -1) or below (1) a place.
function label(text, x, y, fill, side) {
  context.font = "650 14px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = side < 0 ? "bottom" : "top";
  const half = context.measureText(text).width / 2 + 6;
  const left = Math.min(view.width - half, Math.max(half, across(x)));
  const top = Math.min(view.height - 20, Math.max(20, down(y) + side * 12));
  context.strokeStyle = colours.paper;
  context.lineWidth = 4;
  context.lineJoin = "round";
  context.strokeText(text, left, top);
  context.fillStyle = fill;
  context.fillText(text, left, top);
}

function showShares(places) {
  const found = shares(places);
  for (const [i, [x, y]] of middles.entries()) {
    label(`${(100 * found[i]).toFixed(0)} %`, x, y + (y < 0 ? -0.45 : 0.45), colours.mark(1), y < 0 ? 1 : -1);
  }
}

function showPen() {
  if (stroke) {
    context.strokeStyle = colours.lit(1);
    context.lineWidth = 3;
    context.lineCap = "round";
    context.lineJoin = "round";
    context.beginPath();
    for (const [x, y] of stroke) context.lineTo(across(x), down(y));
    context.lineTo(across(stroke.at(-1)[0]) + 0.01, down(stroke.at(-1)[1]));
    context.stroke();
  }
  if (pen && document.activeElement === plane) {
    context.strokeStyle = colours.mark(1);
    context.lineWidth = 2;
    context.beginPath();
    for (const [right, below] of [[10, 0], [0, 10]]) {
      context.moveTo(across(pen[0]) - right, down(pen[1]) - below);
      context.lineTo(across(pen[0]) + right, down(pen[1]) + below);
    }
    context.stroke();
  }
}

// Show everything as it is now.
function show() {
  context.setTransform(view.sharp, 0, 0, view.sharp, 0, 0);
  context.clearRect(0, 0, view.width, view.height);
  if (isDrawing()) {
    if (predict) showArrows(timeAt(WHILE_DRAWING));
    showPoints(0.9, 2.6);
    if (!predict && !stroke) label("Draw here", 0, 0, colours.mark(1), -1);
  } else {
    showArrows(timeAt(moment));
    showPoints(0.3, 1.8);
    const places = showDots();
    if (followed >= 0) showFollowed(places);
    if (moment === 1 && chosen("drawing") === "clouds") showShares(places);
  }
  showPen();
  showMoment();
}

function showMoment() {
  const steps = whole("steps");
  const noise = moment === 1 ? 0 : Math.round(100 * noiseShare(timeAt(moment)));
  const step = Math.min(steps, Math.floor(moment * steps + 1e-9));
  const text = `${noise} % noise, step ${step} of ${steps}`;
  at("moment").value = 200 * moment;
  at("moment").ariaValueText = text;
  at("moment-text").textContent = text;
  at("play").textContent = playing ? "Pause" : moment === 1 ? "Play again" : "Play";
  say(notice || sentence());
}

// What there is to say of the state, in one line.
function sentence() {
  const [steps, noise] = [whole("steps"), noiseShare(timeAt(moment))];
  if (isDrawing()) return "Draw with mouse, pen or finger. When you stop, the noise flows in.";
  if (moment === 0) return playing ? "Nothing but noise." : "Nothing but noise. Play, and it flows into the drawing.";
  if (moment === 1) {
    if (steps === 1) return "One step: every dot went straight to its first guess, the mean of everything. A blot.";
    if (steps < 6) return "Few steps: the dots went too far on old guesses. Give them more.";
    if (chosen("drawing") === "clouds") return "Each cloud has its share: 10, 15, 20, 25 and 30 %, up to chance.";
    if (chosen("sampler") === "ddpm") return "With dice the paths are different. The drawing is the same.";
    if (chosen("drawing") === "own") return "The noise has become your drawing. Pick a dot to see its path.";
    return "The noise has become the drawing. Draw your own, or pick a dot.";
  }
  if (steps < 6) return "Every dot keeps heading for its last guess until it asks again.";
  if (noise > 0.62) return "Much noise: a dot may have been almost any point, so all head for the middle.";
  if (noise > 0.27) return "Less noise: fewer points are possible. Each dot turns towards their mean.";
  return "Little noise: hardly any choice is left, and every dot goes to its own place.";
}

// The clock ----------------------------------------------------------------------------------------------------

let asked = false; // whether a frame is on its way
let last = 0; // the time of the last one

function frame(now) {
  asked = false;
  const passed = Math.min(50, Math.max(0, now - last)); // a frame may be older than the click
  last = now;
  if (playing) {
    const seconds = whole("steps") === 1 ? 3.5 : 6.5;
    moment = Math.min(1, moment + passed / (1000 * seconds));
    if (moment === 1) playing = false;
  }
  show();
  if (playing) refresh();
}

function refresh() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(frame);
}

// Let it flow from where it is, or from the beginning; who wants no motion sees the end at once.
function play(from = moment) {
  moment = calm.matches ? 1 : from;
  playing = !calm.matches && Boolean(predict);
  last = performance.now();
  refresh();
}

function goTo(share) {
  playing = false;
  moment = Math.min(1, Math.max(0, share));
  refresh();
}

// The dot nearest to a place, in the direction [right, up] if one is given.
function nearestDot([x, y], direction) {
  const places = placesAt(moment);
  let [nearest, least] = [followed, Infinity];
  for (let n = 0; n < PARTICLES; n++) {
    const [right, up] = [places[2 * n] - x, places[2 * n + 1] - y];
    const ahead = direction ? right * direction[0] + up * direction[1] : 1;
    const distance = right * right + up * up + (direction ? 3 * (right * direction[1] - up * direction[0]) ** 2 : 0);
    if (n !== followed && ahead > 0 && distance < least) [nearest, least] = [n, distance];
  }
  return nearest;
}

function follow(number) {
  followed = number;
  refresh();
}

// The pen ------------------------------------------------------------------------------------------------------

const within = (value, reach) => Math.min(reach, Math.max(-reach, value));

function placeOf(event) {
  const box = plane.getBoundingClientRect();
  const x = (event.clientX - box.left - view.width / 2) / view.scale;
  const y = (box.top + view.height / 2 - event.clientY) / view.scale;
  return [within(x, WIDE), within(y, HIGH)];
}

// Add a stroke to the reader's drawing; it is kept as the link holds it, so that a friend sees the same.
function addStroke(next) {
  const held = decoded(encoded([...strokes, simplified(next)]));
  if (!held) tell("The drawing is full: a link can hold no more.");
  else if (held.length > POINTS) tell(`More than ${POINTS} strokes: not every one of them gets a point.`);
  strokes = held ?? strokes;
  stroke = null;
  writeLink();
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    waiting = 0;
    play(0);
  }, 1100);
  setPoints(pointsAlong(strokes));
  refresh();
}

function choose(name, value) {
  document.querySelector(`input[name=${name}][value=${value}]`).checked = true;
}

function pointerDown(event) {
  if (event.button !== 0 || !event.isPrimary) return;
  touched = { event, place: placeOf(event) };
  if (chosen("drawing") === "own") plane.setPointerCapture(event.pointerId);
}

function pointerMove(event) {
  if (!touched || event.pointerId !== touched.event.pointerId) return;
  if (!stroke && event.buttons === 0) touched = null; // released elsewhere
  if (!touched) return;
  const moved = Math.hypot(event.clientX - touched.event.clientX, event.clientY - touched.event.clientY);
  if (!stroke) {
    if (moved < 6 || (event.pointerType === "touch" && chosen("drawing") !== "own")) return; // touch scrolls
    const begun = touched;
    choose("drawing", "own");
    takeDrawing(); // what was drawn before stays
    plane.setPointerCapture(event.pointerId);
    playing = false;
    [touched, stroke] = [begun, [begun.place]];
  }
  for (const part of event.getCoalescedEvents?.() ?? [event]) stroke.push(placeOf(part));
  stroke.push(placeOf(event));
  setPoints(pointsAlong([...strokes, stroke])); // the arrows follow the pen
  refresh();
}

function pointerUp(event) {
  if (!touched || event.pointerId !== touched.event.pointerId) return;
  const { place } = touched;
  touched = null;
  if (stroke) addStroke(stroke);
  else if (event.type === "pointercancel") return;
  else if (isDrawing()) addStroke([place]);
  else follow(nearestDot(place));
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function keyDown(event) {
  const [own, direction] = [chosen("drawing") === "own", ARROWS[event.key]];
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (direction && own) {
    const [x, y] = pen ?? [0, 0];
    const far = event.shiftKey ? 0.5 : 0.1;
    pen = [within(x + far * direction[0], SEEN), within(y + far * direction[1], HIGH)];
    refresh();
  } else if (direction) {
    const places = placesAt(moment);
    follow(nearestDot(followed < 0 ? [0, 0] : [places[2 * followed], places[2 * followed + 1]], direction));
  } else if (event.key === " " || event.key === "Enter") {
    if (own) addStroke([pen ?? [0, 0]]);
    else togglePlay();
  } else if (event.key === "Escape") follow(-1);
  else return;
  event.preventDefault();
}

// Settings and the link ----------------------------------------------------------------------------------------

function showSettings() {
  for (const id of ["steps", "seed"]) at(`${id}-text`).textContent = at(id).value;
  const dice = chosen("sampler") === "ddpm";
  at("sampler-help").textContent = dice ? "DDPM: fresh noise in every step." : "DDIM: same noise, same paths.";
}

function writeLink() {
  const drawing = chosen("drawing");
  const settings = new URLSearchParams();
  if (drawing === "own" && strokes.length) settings.set("strokes", encoded(strokes));
  else if (drawing === "word") settings.set("word", at("word").value);
  else if (drawing !== "own") settings.set("drawing", drawing);
  settings.set("sampler", chosen("sampler"));
  for (const id of ["steps", "seed"]) settings.set(id, at(id).value);
  history.replaceState(null, "", `#${settings}`);
}

// Take over what a link holds; what does not exist is left out.
function takeLink() {
  const settings = new URLSearchParams(location.hash.slice(1));
  const drawn = decoded(settings.get("strokes") ?? "");
  if (drawn) {
    strokes = drawn;
    choose("drawing", "own");
  } else if (settings.get("word")?.trim()) {
    at("word").value = [...settings.get("word")].slice(0, 12).join("");
    choose("drawing", "word");
  } else if (Object.hasOwn(shapes, settings.get("drawing"))) choose("drawing", settings.get("drawing"));
  if (["ddim", "ddpm"].includes(settings.get("sampler"))) choose("sampler", settings.get("sampler"));
  for (const id of ["steps", "seed"]) {
    if (/^-?\d+(\.\d+)?$/.test(settings.get(id))) at(id).value = settings.get(id);
  }
  if (settings.has("strokes") && !drawn) tell("The drawing in this link is damaged or too long.");
  showSettings();
  takeDrawing();
}

async function copyLink() {
  writeLink();
  if (!predict) return tell("Nothing is drawn yet.");
  try {
    await navigator.clipboard.writeText(location.href);
    tell("The link is copied: whoever opens it sees this drawing and this flow.");
  } catch {
    tell("This browser does not let a page copy. The link is in its address bar.");
  }
}

function togglePlay() {
  if (playing) goTo(moment);
  else play(moment === 1 ? 0 : moment);
}

// The same drawing with other settings, at the same moment.
function newFilm() {
  showSettings();
  setFilm();
  refresh();
}

// The dot that is followed at first: one that begins near the middle, so that its way is long.
const firstFollowed = () => nearestDot([-0.75, -0.3]);

// For the tests, the benchmark, and the curious at the console: show `share` of the flow, from 0 to 1, now.
window.showFlow = (share) => {
  playing = false;
  moment = share;
  show();
  return { points: [...points], places: [...placesAt(share)], time: timeAt(share) };
};

// Begin --------------------------------------------------------------------------------------------------------

function start() {
  takeColours();
  takeLink();
  followed = firstFollowed();
  for (const input of document.querySelectorAll("input[name=drawing]")) {
    input.addEventListener("change", () => {
      takeDrawing();
      writeLink();
      if (predict) play(0);
      else goTo(0);
    });
  }
  for (const input of document.querySelectorAll("input[name=sampler]")) {
    input.addEventListener("change", () => {
      newFilm();
      writeLink();
      play(0);
    });
  }
  for (const id of ["steps", "seed"]) {
    at(id).addEventListener("input", newFilm);
    at(id).addEventListener("change", writeLink);
  }
  at("word").addEventListener("input", takeDrawing);
  at("word").addEventListener("input", () => play(0));
  at("word").addEventListener("input", writeLink);
  at("clear").addEventListener("click", () => {
    strokes = [];
    takeDrawing();
    goTo(0);
  });
  at("play").addEventListener("click", togglePlay);
  at("step").addEventListener("click", () => goTo((Math.floor(moment * whole("steps") + 1e-6) + 1) / whole("steps")));
  at("restart").addEventListener("click", () => (calm.matches ? goTo(0) : play(0)));
  at("moment").addEventListener("input", () => goTo(whole("moment") / 200));
  at("another").addEventListener("click", () => follow(Math.floor(PARTICLES * Math.random())));
  at("link").addEventListener("click", copyLink);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  plane.addEventListener("pointerdown", pointerDown);
  plane.addEventListener("pointermove", pointerMove);
  plane.addEventListener("pointerup", pointerUp);
  plane.addEventListener("pointercancel", pointerUp);
  plane.addEventListener("keydown", keyDown);
  for (const name of ["focus", "blur"]) plane.addEventListener(name, refresh);
  addEventListener("hashchange", () => {
    takeLink();
    play(0);
  });
  dark.addEventListener("change", () => {
    takeColours();
    refresh();
  });
  new ResizeObserver(() => {
    fit();
    show();
  }).observe(plane);
  if (calm.matches) goTo(0.5);
  else {
    goTo(0);
    setTimeout(() => moment === 0 && !playing && predict && play(0), 900); // a glance at the noise first
  }
}

start();
