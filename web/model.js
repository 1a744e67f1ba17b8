// Brings onnxruntime-web and a network into the page. The runtime lies packed beside it: 14 MB are 3.7 so.

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

// The bytes of a file; `onBytes(name, loaded, total)` is called as they arrive, total 0 if nobody knows.
async function fetchBytes(name, onBytes) {
  const response = await fetch(name).catch(() => ({ status: "no network" }));
  if (!response.ok) throw new Error(`The file ${name} did not arrive (${response.status}). Please try again later.`);
  const total = response.headers.get("content-encoding") ? 0 : Number(response.headers.get("content-length"));
  const [reader, parts] = [response.body.getReader(), []];
  let loaded = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    onBytes(name, (loaded += part.value.length), total);
  }
  onBytes(name, loaded, loaded);
  return new Blob(parts);
}

// Unpack a .gz file, unless the server has done so on the way.
async function unpack(blob) {
  const [first, second] = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  if (first !== 0x1f || second !== 0x8b) return blob.arrayBuffer();
  return new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function startRuntime(kind, onBytes) {
  if (typeof WebAssembly === "undefined") {
    throw new Error("This browser has no WebAssembly, in which the network computes. Any current browser has it.");
  }
  const { module, binary } = RUNTIMES[kind];
  const packed = fetchBytes(`runtime/${binary}`, onBytes);
  packed.catch(() => {}); // whoever waits for it below reports that
  const ort = await import(`./runtime/${module}`).catch(() => {
    throw new Error(`The file runtime/${module} did not arrive. Please try again later.`);
  });
  ort.env.logLevel = "error";
  ort.env.wasm.proxy = kind === "wasm"; // computes beside the page, so that sliders never wait
  ort.env.wasm.wasmBinary = await unpack(await packed);
  return ort;
}

// Load `model`, an entry of models.json. Returns `{ predictNoise, decode }`: `predictNoise(noisy, time, promptTokens)` is
// the noise that the network sees; `decode(latents)` makes colours of latents, null where the network draws colours.
export function loadModel(model, kind, onBytes) {
  return once(`${kind} ${model.name}`, async () => {
    const runtime = once(kind, () => startRuntime(kind, onBytes));
    const files = [model.file, model.decoder].filter(Boolean);
    const [ort, ...weights] = await Promise.all([runtime, ...files.map((file) => fetchBytes(file, onBytes))]);
    const options = { executionProviders: [kind] };
    const start = async (blob) => ort.InferenceSession.create(new Uint8Array(await blob.arrayBuffer()), options);
    const [network, decoder] = [await start(weights[0]), weights[1] ? await start(weights[1]) : null];
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
    return { predictNoise, decode: decoder && decode };
  });
}

// Whether the reader's graphics card can be used.
export async function hasGraphicsCard() {
  return Boolean(await navigator.gpu?.requestAdapter().catch(() => null));
}

export async function loadModels() {
  const blob = await fetchBytes("models/models.json", () => {});
  return JSON.parse(await blob.text());
}
