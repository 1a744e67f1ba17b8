// The loop that draws, in plain JavaScript. It is lesson 05's, word for word where the language allows;
// dpmSolver is lesson 12's. An image is a Float32Array: all of its red, then all green, then all blue, row by
// row, normalised to mean 0 and standard deviation 1. `predict(noisy, time)` asks the network.

const [START, END] = [Math.acos(0.95), Math.acos(0.02)];

// How much noise and how much image at `time`, from 0 (clean) to 1 (noise). Lesson 02.
export function schedule(time) {
  const angle = START + time * (END - START);
  return [Math.sin(angle), Math.cos(angle)];
}

// The noisy image at `time`: signalRate · image + noiseRate · noise. Lesson 02.
export function mix(image, noise, time) {
  const [noiseRate, signalRate] = schedule(time);
  return image.map((value, i) => signalRate * value + noiseRate * noise[i]);
}

// Ask the network once: the noise it sees in `noisy`, and the image that remains. Lesson 05. Where a network takes
// a prompt, `promptTokens` are the numbers of its words.
export function predictor(predictNoise, promptTokens) {
  return async function predict(noisy, time) {
    const [noiseRate, signalRate] = schedule(time);
    const noise = await predictNoise(noisy, time, promptTokens);
    return [noise, noisy.map((value, i) => (value - noiseRate * noise[i]) / signalRate)];
  };
}

// Go from the guess without a condition to the one with it, and beyond: classifier-free guidance, at times from 0 to 1.
// Lesson 15.
export function guide(conditional, unconditional, guidanceScale) {
  return async function guided(noisy, time) {
    const guesses = await conditional(noisy, time);
    if (time < 0 || time > 1) return guesses; // hardly any noise, or nothing else
    const others = await unconditional(noisy, time);
    return guesses.map((guess, k) => guess.map((value, i) => others[k][i] + guidanceScale * (value - others[k][i])));
  };
}

const LETTER = "[\\p{L}\\p{N}_]"; // of any script
const EDGE = `(?:(?<!${LETTER})(?=${LETTER})|(?<=${LETTER})(?!${LETTER}))`; // of a word: what Python calls \b

// A prompt in words of the vocabulary: `wordings` is [[phrase, words], …]. Lesson 16.
function reworded(prompt, wordings) {
  let text = prompt.toLowerCase();
  for (const [phrase, words] of wordings) {
    text = text.replace(new RegExp(`${EDGE}${phrase}${EDGE}`, "gu"), words);
  }
  return text.trim();
}

// The words and commas of a prompt that the vocabulary has, and the words that it does not have. Lesson 16.
export function wordsOf(prompt, vocabulary, wordings = []) {
  const words = reworded(prompt, wordings).match(/[\p{L}\p{N}_'-]+|,/gu) ?? [];
  const unknown = [...new Set(words.filter((word) => !vocabulary.includes(word)))];
  return [words.filter((word) => vocabulary.includes(word)), unknown];
}

// The tokens of a prompt: a start token, the numbers of its words in the vocabulary, from 1 on, then zeros; commas count
// as words, and unknown words are left out. Lesson 16. A prompt that is too long is an Error that says so.
export function tokens(prompt, vocabulary, length, wordings = []) {
  const [words] = wordsOf(prompt, vocabulary, wordings);
  if (words.length >= length) throw new Error(`These are ${words.length} words and commas; ${length - 1} are the most.`);
  const numbers = [1 + vocabulary.length, ...words.map((word) => 1 + vocabulary.indexOf(word))];
  return BigInt64Array.from({ length }, (_, i) => BigInt(numbers[i] ?? 0));
}

// One step of DDIM: what was seen is mixed again, with less noise. Lesson 05.
export async function ddim(predict, noisy, time, nextTime) {
  const [noise, image] = await predict(noisy, time);
  return [mix(image, noise, nextTime), image];
}

// The logarithm of signal rate / noise rate. Lesson 12.
function logRatio(time) {
  const [noiseRate, signalRate] = schedule(time);
  return Math.log(signalRate / noiseRate);
}

// A step that remembers the last guess, and where guesses are heading: DPM-Solver++ 2M. Lesson 12. It asks the
// network where it ends, and once more before the first step.
export function dpmSolver() {
  let [now, before] = [null, null]; // the last two guesses, each with its logRatio
  return async function step(predict, noisy, time, nextTime) {
    now ??= { logRatio: logRatio(time), image: (await predict(noisy, time))[1] };
    const { logRatio: here, image } = now;
    const there = logRatio(nextTime);
    const ahead = before ? (there - here) / (here - before.logRatio) / 2 : 0; // nothing to remember yet
    const last = before ? before.image : image;
    const middle = image.map((value, i) => value + ahead * (value - last[i]));
    const [noiseRate, nextNoiseRate] = [schedule(time)[0], schedule(nextTime)[0]];
    const growth = Math.exp(there) - Math.exp(here);
    const next = noisy.map((value, i) => nextNoiseRate * (value / noiseRate + growth * middle[i]));
    [before, now] = [now, { logRatio: there, image: (await predict(next, nextTime))[1] }];
    return [next, now.image];
  };
}

// Go from `noisy` along `times`, from 1 to 0; yields the noisy image and the guess after each step. Lesson 05.
export async function* sample(predict, noisy, times, step = ddim) {
  for (let i = 1; i < times.length; i++) {
    let image;
    [noisy, image] = await step(predict, noisy, times[i - 1], times[i]);
    yield [noisy, image];
  }
}

// `steps` + 1 times along the list `times` of a model's config, between its numbers too. Lesson 05.
export function timesAlong(times, steps) {
  return Array.from({ length: steps + 1 }, (_, i) => {
    const place = (i * (times.length - 1)) / steps;
    const before = Math.min(Math.floor(place), times.length - 2);
    return times[before] + (place - before) * (times[before + 1] - times[before]);
  });
}

// A whole number of 32 bits, stirred until no pattern is left (Chris Wellons' lowbias32).
function stirred(number) {
  number = Math.imul(number ^ (number >>> 16), 0x7feb352d);
  number = Math.imul(number ^ (number >>> 15), 0x846ca68b);
  return (number ^ (number >>> 16)) >>> 0;
}

// `length` numbers of a normal distribution, the same for the same seed in every browser; not PyTorch's. Two evenly
// spread numbers out of (0, 1), each a stirred counter, become a normal one: Box and Muller 1958.
export function startingNoise(seed, length) {
  const key = stirred(seed + 0x9e3779b9);
  const even = (counter) => (stirred(counter ^ key) + 0.5) / 2 ** 32;
  return Float32Array.from({ length }, (_, i) => {
    return Math.sqrt(-2 * Math.log(even(2 * i))) * Math.cos(2 * Math.PI * even(2 * i + 1));
  });
}

// From one noise sample to another, `share` of the way: along a quarter circle, so that it stays noise of deviation 1.
export function between(one, other, share) {
  const angle = (share * Math.PI) / 2;
  return one.map((value, i) => Math.cos(angle) * value + Math.sin(angle) * other[i]);
}

// Colours from 0 to 1 instead of normalised ones. Lesson 05.
export function denormalize(image, { mean, deviation }) {
  const pixels = image.length / mean.length;
  const colour = (value, i) => mean[Math.floor(i / pixels)] + value * deviation[Math.floor(i / pixels)];
  return image.map((value, i) => Math.min(1, Math.max(0, colour(value, i))));
}
