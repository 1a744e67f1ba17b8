// Brings onnxruntime-web and a network into the page. Both lie packed beside it: the runtime's 14 MB are 3.7 so.

import { tokens } from "./diffusion.js";

const RUNTIMES = {
  wasm: { module: "ort.wasm.min.mjs", binary: "ort-wasm-simd-threaded.wasm.gz" },
  webgpu: { module: "ort.webgpu.min.mjs", binary: "ort-wasm-simd-threaded.asyncify.wasm.gz" },
};
const kept = new Map(); // what has been loaded, or is on its way

// The promise that `make` gave for `name` the first time, unless it failed.
function once(name, make) {
  if (!kept.has(name)) kept.set(name, make());
  kept.get(name).catch(() => kept.delete(name));
  return kept.get(name);
}

// The bytes of a file; `onBytes(name, loaded, total)` is called as they arrive, total 0 if nobody knows. `size`: how
// many there must be, where that is known.
async function fetchBytes(name, onBytes, size) {
  const lost = (why) => new Error(`The file ${name} did not arrive (${why}). Press New face to try again.`);
  const response = await fetch(name).catch(() => ({ status: "no network" }));
  if (!response.ok) throw lost(response.status);
  const { headers, body } = response;
  if (/^text\/html/.test(headers.get("content-type"))) throw lost("a web page came in its place");
  const total = headers.get("content-encoding") ? 0 : size ?? Number(headers.get("content-length"));
  const [reader, parts] = [body.getReader(), []];
  const read = () => reader.read().catch(() => Promise.reject(lost("it broke off")));
  let loaded = 0;
  for (let part = await read(); !part.done; part = await read()) {
    parts.push(part.value);
    onBytes(name, (loaded += part.value.length), total);
  }
  if (loaded !== (total || loaded)) throw lost("it broke off");
  onBytes(name, loaded, loaded);
  return new Blob(parts);
}

// Unpack a .gz file, unless the server has done so on the way.
async function unpack(blob, name) {
  const [first, second] = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  if (first !== 0x1f || second !== 0x8b) return blob.arrayBuffer();
  const unpacked = new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  return unpacked.catch(() => Promise.reject(new Error(`The file ${name} is damaged. Press New face to try again.`)));
}

// A network as tools/export_onnx.py packs it: first all bytes in even places, then those in odd ones.
async function unpackNetwork(blob, name) {
  const sorted = new Uint8Array(await unpack(blob, name));
  const [bytes, middle] = [new Uint8Array(sorted.length), Math.ceil(sorted.length / 2)];
  for (let i = 0; i < middle; i++) bytes[2 * i] = sorted[i];
  for (let i = middle; i < sorted.length; i++) bytes[2 * (i - middle) + 1] = sorted[i];
  return bytes;
}

let attempts = 0; // browsers remember that a program did not arrive, but not under another address

async function startRuntime(kind, onBytes) {
  for (const name of ["WebAssembly", "DecompressionStream"]) {
    if (!(name in globalThis)) throw new Error(`This browser has no ${name}, which the page needs. Any current browser has it.`);
  }
  const { module, binary } = RUNTIMES[kind];
  const packed = fetchBytes(`runtime/${binary}`, onBytes);
  packed.catch(() => {}); // whoever waits for it below reports that
  const ort = await import(`./runtime/${module}${attempts ? `?${attempts}` : ""}`).catch(() => {
    attempts += 1;
    throw new Error(`The file runtime/${module} did not arrive. Press New face to try again.`);
  });
  ort.env.logLevel = "error";
  ort.env.wasm.proxy = kind === "wasm" && "Worker" in globalThis; // computes beside the page, so that sliders never wait
  ort.env.wasm.wasmBinary = await unpack(await packed, `runtime/${binary}`);
  return ort;
}

// Whether `numbers` are about those that PyTorch has found, in 48 places: weights here have 16 bits.
function agrees(numbers, known) {
  const apart = Math.floor(numbers.length / known.length);
  return known.every((value, i) => Math.abs(numbers[i * apart] - value) < 0.05 * (1 + Math.abs(value)));
}

// Load `model`, an entry of models.json. Returns `{ kind, predictNoise, decode }`: `predictNoise(noisy, time, promptTokens)`
// is the noise that the network sees; `decode(latents)` makes colours of latents, null where the network draws colours.
// A graphics card that finds something else than PyTorch is left alone: then `kind` is "wasm".
export function loadModel(model, kind, onBytes) {
  return once(`${kind} ${model.name}`, async () => {
    const runtime = once(kind, () => startRuntime(kind, onBytes));
    const files = [[model.file, model.bytes], [model.decoder, model.decoder_bytes]].filter(([file]) => file);
    const fetched = files.map(([file, size]) => fetchBytes(file, onBytes, size));
    const [ort, ...blobs] = await Promise.all([runtime, ...fetched]);
    const options = { executionProviders: [kind] };
    const session = async (blob, file) =>
      ort.InferenceSession.create(await unpackNetwork(blob, file), options).catch((cause) => {
        throw new Error("The runtime did not start. Please load the page again.", { cause }); // it never tries twice
      });
    const network = await session(blobs[0], model.file);
    const decoder = blobs[1] ? await session(blobs[1], model.decoder) : null;
    const shape = [1, model.mean.length, model.image_size, model.image_size];
    const tensor = (values) => new ort.Tensor("float32", values.slice(), shape); // a copy, since it moves to the other thread

    async function predictNoise(noisy, time, promptTokens) {
      const feeds = { noisy: tensor(noisy), time: new ort.Tensor("float32", [time], [1, 1, 1, 1]) };
      if (model.vocabulary) feeds.tokens = new ort.Tensor("int64", promptTokens.slice(), [1, model.length]);
      return (await network.run(feeds)).noise.data;
    }
    async function decode(latents) {
      return (await decoder.run({ latents: tensor(latents) })).images.data;
    }
    const wave = Float32Array.from({ length: shape.reduce((one, other) => one * other) }, (_, i) => Math.sin(i));
    const nothing = model.vocabulary && tokens("", model.vocabulary, model.length);
    const right =
      agrees(await predictNoise(wave, 0.5, nothing), model.answer) &&
      (!decoder || agrees(await decode(wave.map((value) => 0.5 + value / 10)), model.decoder_answer));
    if (right) return { kind, predictNoise, decode: decoder && decode };
    if (kind === "wasm") throw new Error("This browser computes the network wrongly, or its file is damaged. Please load the page again, or try another browser.");
    return loadModel(model, "wasm", onBytes);
  });
}

// Whether the reader's graphics card can be used.
export async function hasGraphicsCard() {
  return Boolean(await navigator.gpu?.requestAdapter().catch(() => null));
}

export async function loadModels() {
  const blob = await fetchBytes("models/models.json", () => {});
  try {
    return JSON.parse(await blob.text());
  } catch {
    throw new Error("The file models/models.json is damaged. Press New face to try again.");
  }
}
