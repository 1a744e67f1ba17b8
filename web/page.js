// What the page does: settings from sliders and from the link, the film as it is computed, the walk, the PNG.

import { between, ddim, denormalize, dpmSolver, guide, predictor } from "./diffusion.js";
import { sample, startingNoise, timesAlong, tokens, wordsOf } from "./diffusion.js";
import { hasGraphicsCard, loadModel, loadModels } from "./model.js";

const at = (id) => document.getElementById(id);
const SLIDERS = ["seed", "steps", "to", "way", "guidance-scale"];
const CHOICES = ["sampler", "model", "kind"];
const SETTINGS = [...CHOICES, ...SLIDERS, "prompt"];
const STATIONS = 9; // faces of a walk
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let models = []; // the entries of models.json
let film = []; // after each step the colours of [noisy, image], those of the starting noise first
let network = null; // what has been loaded: predictNoise and decode
let turn = 0; // of the newest drawing; an older one stops when it sees that
let running = Promise.resolve(); // the drawing that is under way
let result = null; // the last face: its colours, and what it is called
let loads = 0; // the number of the newest load; an older one has nothing more to say
let failed = false; // whether something did not arrive; the next wish tries again

const model = () => models.find((entry) => entry.name === at("model").value) ?? models[0];
const whole = (id) => Number(at(id).value);
const say = (sentence) => (at("status").textContent = sentence);

// Images -----------------------------------------------------------------------------------------------------

// Colours (3·S·S, from 0 to 1) as the pixels of a canvas.
function pixels(colours) {
  const area = colours.length / 3;
  const data = new ImageData(Math.sqrt(area), Math.sqrt(area));
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) data.data[4 * i + c] = Math.round(255 * colours[c * area + i]);
    data.data[4 * i + 3] = 255;
  }
  return data;
}

// The colours of what the network computes with; of latents, which have four numbers in a place, the first three.
function asColours(normalised) {
  if (!model().decoder) return denormalize(normalised, model());
  return normalised.slice(0, 3 * model().image_size ** 2).map((value) => Math.min(1, Math.max(0, 0.5 + value / 6)));
}

// The colours of a guess at the clean image, decoded where it is a latent.
async function asImage(normalised) {
  const colours = denormalize(normalised, model());
  return model().decoder ? network.decode(colours) : colours;
}

function paint(canvas, colours) {
  const data = pixels(colours);
  [canvas.width, canvas.height] = [data.width, data.height];
  canvas.getContext("2d").putImageData(data, 0, 0);
  return data;
}

// Show the film at `moment`, from 0 (noise) to its end.
function showMoment(moment) {
  const [[noisy, image], text] = [film[moment], `step ${moment} of ${at("moment").max}`];
  [at("moment").value, at("moment").ariaValueText, at("moment-text").textContent] = [moment, text, text];
  paint(at("noisy"), noisy);
  const { data, width } = paint(at("image"), image);
  const corner = (column) => [...data.slice(4 * (2 * width + column), 4 * (2 * width + column) + 3)].join(" ");
  at("image").parentElement.style.setProperty("--glow", `rgb(${corner(1)})`);
  at("image").parentElement.style.setProperty("--glow-right", `rgb(${corner(width - 2)})`);
}

// Ten moments of the film beside each other: what it holds above, what it sees below.
function showStrip(steps) {
  const [canvas, size, columns] = [at("strip"), model().decoder ? 64 : model().image_size, 10];
  [canvas.width, canvas.height] = [columns * size, 2 * size];
  for (let column = 0; column < columns; column++) {
    const moment = Math.round((column * steps) / (columns - 1));
    (film[moment] ?? []).forEach((image, row) => {
      const small = document.createElement("canvas");
      paint(small, image);
      canvas.getContext("2d").imageSmoothingEnabled = false;
      canvas.getContext("2d").drawImage(small, column * size, row * size, size, size);
    });
  }
}

// Drawing ----------------------------------------------------------------------------------------------------

function noiseOnTheWay(share) {
  const length = model().mean.length * model().image_size ** 2;
  const one = startingNoise(whole("seed"), length);
  return share > 0 ? between(one, startingNoise(whole("to"), length), share) : one;
}

// What asks the network in each step: for any face, or for what the prompt says.
function chosenPredictor() {
  const [{ predictNoise }, { vocabulary, length, wordings }] = [network, model()];
  if (!vocabulary) return predictor(predictNoise);
  const prompt = at("prompt").value.trim();
  const unconditional = predictor(predictNoise, tokens("", vocabulary, length));
  if (prompt === "") return unconditional;
  const conditional = predictor(predictNoise, tokens(prompt, vocabulary, length, wordings));
  return guide(conditional, unconditional, whole("guidance-scale"));
}

// How the network has read the prompt, where that is not word for word.
function howRead() {
  const [prompt, { vocabulary, wordings }] = [at("prompt").value.trim(), model()];
  if (!vocabulary || prompt === "") return "";
  const [words, unknown] = wordsOf(prompt, vocabulary, wordings);
  const same = words.length > 0 && words.join() === wordsOf(prompt, vocabulary)[0].join();
  const reading = same ? "" : ` The network has read: ${words.join(" ").replaceAll(" ,", ",") || "nothing"}.`;
  return unknown.length ? `${reading} It does not know: ${unknown.join(", ")}.` : reading;
}

// Draw from `noise`, and show the film as it is computed. Returns false when a newer drawing has begun.
async function drawNow(mine, noise, { leisurely = false } = {}) {
  const way = whole("way") > 0 ? `-to-${whole("to")}-${whole("way")}` : "";
  const name = `face-${whole("seed")}${way}`; // sliders may have moved when it is drawn
  const [steps, step] = [whole("steps"), at("sampler").value === "dpm" ? dpmSolver() : ddim];
  const times = timesAlong(model().times, steps);
  const [predict, began] = [chosenPredictor(), performance.now()];
  let waited = 0;
  film = [[noise, noise.map(() => 0)].map(asColours)];
  at("moment").max = steps;
  for await (const pair of sample(predict, noise, times, step)) {
    if (mine !== turn) return false;
    film.push([asColours(pair[0]), await asImage(pair[1])]);
    if (mine !== turn) return false;
    const moment = film.length - 1;
    if (!calm.matches || moment === steps) {
      showMoment(moment);
      showStrip(steps);
      const early = leisurely ? began + 40 * moment - performance.now() : 0; // a fast machine would show no film
      const pause = performance.now();
      if (early > 0) await new Promise((done) => setTimeout(done, early));
      waited += performance.now() - pause;
    }
  }
  result = { name, colours: film.at(-1)[1] };
  const seconds = ((performance.now() - began - waited) / 1000).toFixed(2);
  say(`Drawn in ${steps} ${steps === 1 ? "step" : "steps"} and ${seconds} seconds, on your machine.${howRead()}`);
  return true;
}

// One drawing at a time: a new one waits until the old one has stopped. `draw(mine)` is what to do.
function next(draw) {
  const mine = ++turn;
  running = running.then(() => mine === turn && network && draw(mine)).catch((error) => say(error.message));
  return running;
}

const redraw = (options) => next((mine) => drawNow(mine, noiseOnTheWay(whole("way") / 100), options));

// Load the network that is chosen, showing the noise meanwhile, and draw.
async function load() {
  const [chosen, kind, progress, files] = [model(), at("kind").value, at("progress"), {}];
  const mine = ++loads;
  [network, failed, turn] = [null, false, turn + 1];
  progress.removeAttribute("value"); // it moves, but shows no number yet
  say("Loading the network …");
  at("moment").max = whole("steps");
  clearStations();
  film = [[noiseOnTheWay(whole("way") / 100), noiseOnTheWay(0).map(() => 0)].map(asColours)];
  showMoment(0);
  showStrip(whole("steps"));
  try {
    const loaded = await loadModel(chosen, kind, (name, bytes, total) => {
      if (failed || mine !== loads) return; // others may still be on their way
      files[name] = [bytes, total];
      const [sum, all] = [0, 1].map((i) => Object.values(files).reduce((so, file) => so + file[i], 0));
      progress.hidden = false;
      if (all >= sum) progress.value = sum / all;
    });
    if (mine !== loads) return; // another one is wanted meanwhile
    network = loaded;
    if (loaded.kind !== kind) take({ kind: loaded.kind });
    showSettings();
    await redraw({ leisurely: true });
    if (loaded.kind !== kind) say("Your graphics card computes this network wrongly, so the processor drew this.");
    performance.mark("first face");
  } catch (error) {
    if (mine !== loads) return;
    failed = true;
    say(error.message);
  } finally {
    if (mine === loads) progress.hidden = true;
  }
}

// The walk ---------------------------------------------------------------------------------------------------

function makeStations() {
  for (let number = 0; number < STATIONS; number++) {
    const [station, percent] = [document.createElement("button"), Math.round((100 * number) / (STATIONS - 1))];
    [station.type, station.disabled] = ["button", true];
    station.setAttribute("aria-label", `The face at ${percent} percent of the way`);
    station.append(document.createElement("canvas"));
    station.addEventListener("click", () => update(take({ way: percent })));
    at("stations").append(station);
  }
}

const walk = () =>
  failed ? load() : next(async (mine) => {
    for (const [number, station] of [...at("stations").children].entries()) {
      const share = number / (STATIONS - 1);
      at("way").value = Math.round(100 * share);
      showSettings();
      if (!(await drawNow(mine, noiseOnTheWay(share)))) return;
      paint(station.firstChild, film.at(-1)[1]);
      station.disabled = false;
    }
  });

// Before a walk its stations show what they begin with: the two noise samples, more and more of the second.
function clearStations() {
  for (const [number, station] of [...at("stations").children].entries()) {
    station.disabled = true;
    paint(station.firstChild, asColours(noiseOnTheWay(number / (STATIONS - 1))));
  }
}

// Settings and the link ----------------------------------------------------------------------------------------

function showSettings() {
  const { weights, bytes, decoder_bytes = 0 } = model();
  at("model-help").textContent = `${weights.toLocaleString("en")} weights, ${((bytes + decoder_bytes) / 1e6).toFixed(1)} MB.`;
  for (const id of SLIDERS) at(`${id}-text`).textContent = id === "way" ? `${at(id).value} %` : at(id).value;
  at("prompt-field").hidden = !model().vocabulary;
  const settings = new URLSearchParams(SETTINGS.map((id) => [id, at(id).value]));
  if (at("kind").value === "wasm") settings.delete("kind");
  if (whole("way") === 0) ["to", "way"].forEach((id) => settings.delete(id));
  if (!model().vocabulary || at("prompt").value === "") ["prompt", "guidance-scale"].forEach((id) => settings.delete(id));
  history.replaceState(null, "", `#${settings}`);
}

// What follows when the settings `ids` have changed.
function update(ids, options) {
  showSettings();
  if (ids.some((id) => id !== "way")) clearStations();
  return failed || ids.some((id) => id === "model" || id === "kind") ? load() : redraw(options);
}

// Take over settings, from a link or a button; what does not exist is left out. Returns what has changed.
function take(settings) {
  const known = (id, value) =>
    SLIDERS.includes(id) ? /^-?\d+(\.\d+)?$/.test(value) : id === "prompt" || hasOption(id, value);
  const changed = Object.entries(settings).filter(([id, value]) => known(id, value) && at(id).value !== `${value}`);
  for (const [id, value] of changed) at(id).value = value;
  const ids = changed.map(([id]) => id);
  if (ids.includes("model") && !("steps" in settings)) at("steps").value = model().steps; // what it was made for
  return ids;
}

const hasOption = (id, value) => CHOICES.includes(id) && [...at(id).options].some((option) => option.value === value);
// What the link holds; without a graphics card the processor computes, whatever it says.
const fromLink = () => ({
  ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))),
  ...(at("kind-field").hidden && { kind: "wasm" }),
});

// Buttons ----------------------------------------------------------------------------------------------------

function save() {
  if (result === null) return say("There is no face yet.");
  const { name } = result;
  const [small, large, data] = [document.createElement("canvas"), document.createElement("canvas"), pixels(result.colours)];
  [small.width, small.height, large.width, large.height] = [data.width, data.height, 512, 512];
  small.getContext("2d").putImageData(data, 0, 0);
  large.getContext("2d").imageSmoothingEnabled = false;
  large.getContext("2d").drawImage(small, 0, 0, 512, 512);
  large.toBlob((blob) => {
    const link = document.createElement("a");
    [link.href, link.download] = [URL.createObjectURL(blob), `${name}.png`];
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // some browsers read it later
    say(`Saved as ${link.download}.`);
  });
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied: whoever opens it gets this face.");
  } catch {
    say(`This browser does not let a page copy. The link is ${location.href}`);
  }
}

// Draw from a given starting noise (3·S·S normal numbers), with the settings of the page; for the tests, and for
// the curious at the console. Returns the colours of the face, from 0 to 1.
window.drawFrom = async (noise) => {
  await next((mine) => drawNow(mine, Float32Array.from(noise)));
  return Array.from(result.colours);
};

// Begin ------------------------------------------------------------------------------------------------------

async function start() {
  try {
    models = await loadModels();
  } catch (error) {
    at("progress").hidden = true;
    say(error.message);
    at("new-face").addEventListener("click", start, { once: true });
    return;
  }
  at("model").replaceChildren(...models.map(({ name, title }) => new Option(title, name)));
  at("model").disabled = false;
  if (await hasGraphicsCard()) at("kind-field").hidden = false;
  at("model").addEventListener("input", () => (at("steps").value = model().steps)); // what it was made for
  for (const id of [...SLIDERS, ...CHOICES]) at(id).addEventListener("input", () => update([id]));
  at("prompt").addEventListener("change", () => update(["prompt"]));
  let typed = 0; // the timer since the last letter
  at("prompt").addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(showSettings, 300); // so that a reload loses nothing
  });
  for (const example of at("examples").children) {
    example.addEventListener("click", () => update(take({ prompt: example.textContent })));
  }
  at("moment").addEventListener("input", () => showMoment(Math.min(whole("moment"), film.length - 1)));
  at("new-face").addEventListener("click", () => {
    update(take({ seed: Math.floor(1000 * Math.random()), way: 0 }), { leisurely: true });
  });
  at("walk").addEventListener("click", walk);
  at("save").addEventListener("click", save);
  at("link").addEventListener("click", copyLink);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => update(take(fromLink())));
  take(fromLink());
  showSettings();
  await load();
}

makeStations();
start();
