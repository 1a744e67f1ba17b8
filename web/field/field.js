// What lesson 06 knows exactly about points in the plane, named as there. Points are one array of numbers: x and y of
// the first, x and y of the second, and so on. Times run from 1, noise, to LAST.

import { mix, schedule, startingNoise } from "../diffusion.js";

export const LAST = -0.2331721; // the time at which only 3 % noise is left

// How probable it is that each of `points` lies behind the noisy point (x, y): Bayes' rule for Gaussian noise, where
// all of `points` are equally probable. The numbers add up to 1.
export function weightsBehind(points, x, y, time) {
  const [noiseRate, signalRate] = schedule(time);
  const distances = Array.from({ length: points.length / 2 }, (_, i) => {
    return (x - signalRate * points[2 * i]) ** 2 + (y - signalRate * points[2 * i + 1]) ** 2;
  });
  const nearest = Math.min(...distances);
  const weights = distances.map((distance) => Math.exp((nearest - distance) / (2 * noiseRate ** 2)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

// How many points share nine tenths of the probability: the crowd that lessons 05 and 06 count.
export function crowdSize(weights) {
  let total = 0;
  return 1 + [...weights].sort((one, other) => other - one).findIndex((weight) => (total += weight) >= 0.9);
}

// exp(-x) for x from 0 to 40, from a table and three terms of the series: eight digits, several times as fast.
const FINE = 32;
const NOTHING = 40; // exp(-40) is nothing beside exp(0)
const TABLE = Float64Array.from({ length: FINE * NOTHING + 1 }, (_, i) => Math.exp(-i / FINE));
function fading(x) {
  const place = (x * FINE) | 0;
  const rest = x - place / FINE;
  return TABLE[place] * (1 - rest * (1 - rest * (0.5 - rest / 6)));
}

// The `predict` of a perfect network that was trained on `points` and nothing else: its image is the mean of all that
// may lie behind a noisy point, and its noise follows from that. The weights are those of `weightsBehind`, up to
// factors that all points share: of (x - signalRate · point)² only what depends on the point is computed.
export function perfectPredict(points) {
  const count = points.length / 2;
  const [pullX, pullY] = [new Float64Array(count), new Float64Array(count)];
  const offset = new Float64Array(count);
  const logs = new Float64Array(count);
  return function predict(noisy, time) {
    const [noiseRate, signalRate] = schedule(time);
    const pull = signalRate / noiseRate ** 2;
    for (let i = 0; i < count; i++) {
      pullX[i] = pull * points[2 * i];
      pullY[i] = pull * points[2 * i + 1];
      offset[i] = (signalRate * (pullX[i] * points[2 * i] + pullY[i] * points[2 * i + 1])) / 2;
    }
    const image = new Float64Array(noisy.length);
    for (let n = 0; n < noisy.length; n += 2) {
      let largest = -Infinity;
      for (let i = 0; i < count; i++) {
        const log = pullX[i] * noisy[n] + pullY[i] * noisy[n + 1] - offset[i];
        logs[i] = log;
        if (log > largest) largest = log;
      }
      let total = 0;
      let x = 0;
      let y = 0;
      for (let i = 0; i < count; i++) {
        const below = largest - logs[i];
        if (below < NOTHING) {
          const weight = fading(below);
          total += weight;
          x += weight * points[2 * i];
          y += weight * points[2 * i + 1];
        }
      }
      image[n] = x / total;
      image[n + 1] = y / total;
    }
    return [noisy.map((value, i) => (value - signalRate * image[i]) / noiseRate), image];
  };
}

// The direction in which the density of noisy points grows fastest, by Tweedie's formula.
export function score(noise, time) {
  const [noiseRate] = schedule(time);
  return noise.map((value) => -value / noiseRate);
}

// How a noisy point moves as its angle grows: signalRate · noise - noiseRate · image.
export function velocity(noise, image, time) {
  const [noiseRate, signalRate] = schedule(time);
  return noise.map((value, i) => signalRate * value - noiseRate * image[i]);
}

// A step without dice: along the probability-flow ODE.
export function ddim(predict, noisy, time, nextTime) {
  const [noise, image] = predict(noisy, time);
  return [mix(image, noise, nextTime), image];
}

// A step with dice, along the reverse SDE: a part of the noise is replaced by fresh noise. One seed, the same dice.
export function ddpm(seed) {
  let count = 0;
  return function step(predict, noisy, time, nextTime) {
    const [noise, image] = predict(noisy, time);
    const [noiseRate, signalRate] = schedule(time);
    const [nextNoiseRate, nextSignalRate] = schedule(nextTime);
    const freshRate = (nextNoiseRate / noiseRate) * Math.sqrt(1 - (signalRate / nextSignalRate) ** 2);
    const keptRate = Math.sqrt(nextNoiseRate ** 2 - freshRate ** 2);
    count += 1;
    const fresh = startingNoise(seed + 1000 * count, noisy.length); // seeds of the page end at 999
    return [image.map((value, i) => nextSignalRate * value + keptRate * noise[i] + freshRate * fresh[i]), image];
  };
}

// Go from `noisy` along `times`; yields the noisy points and the guesses after each step.
export function* sample(predict, noisy, times, step = ddim) {
  for (let i = 1; i < times.length; i++) {
    let image;
    [noisy, image] = step(predict, noisy, times[i - 1], times[i]);
    yield [noisy, image];
  }
}

// The page shows points where flow matching has them, at noisy / (noiseRate + signalRate): there every point goes
// straight towards the mean it has guessed, and a step of DDIM is a straight piece (lesson 06, exercise 4).
export function onTheLine(noisy, time) {
  const [noiseRate, signalRate] = schedule(time);
  return noisy.map((value) => value / (noiseRate + signalRate));
}

// How much of a point is noise where the page shows it: 0.98 at time 1, and 0.03 at LAST.
export function noiseShare(time) {
  const [noiseRate, signalRate] = schedule(time);
  return noiseRate / (noiseRate + signalRate);
}

// The guesses for points that are given as the page shows them.
export function guessOnTheLine(predict, places, time) {
  const [noiseRate, signalRate] = schedule(time);
  const [, image] = predict(places.map((value) => value * (noiseRate + signalRate)), time);
  return image;
}
