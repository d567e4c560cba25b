"use strict";
/* Runs beside the page: unpacks the data, classifies images, and says how far it is.

   page -> worker   {data}                                    once, first
                    {run, unseen, removed, recalibrate}       classify all test images
                    {picture, pixels | domain, index}         classify one, by the last setting run
   worker -> page   {ready, pictures, labels}                 pixels 0 to 255, classes
                    {run, seen, right, of, milliseconds}      now and then, counts by domain
                    {run, finished, before, after, …}         at the end, all predicted classes
                    {picture, before, after}                  probabilities, unpruned and pruned

A new run ends the one before. Work is done in slices of `SLICE` milliseconds, so that messages are
heard in between. */

function dgWorker(port) {
  const SLICE = 12;
  const images = {}, calibration = {}, labels = {}, pictures = {}, networks = {}, unpruned = {};
  let side, layerNames, current, setting;

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const largest = (values) => values.indexOf(Math.max(...values));
  const all = (layer) => Array.from({ length: layer.filters }, (_, filter) => filter);

  /* Pixels 0 to 1, by colour and row -> a map with a border of zeros; grey becomes three colours. */
  function toMap(pixels) {
    const row = side + 2, map = new Float32Array(3 * row * row), size = side * side;
    for (let channel = 0; channel < 3; channel++)
      for (let y = 0; y < side; y++)
        for (let x = 0; x < side; x++)
          map[(channel * row + y + 1) * row + x + 1] = pixels[((channel * size) % pixels.length) + y * side + x];
    return map;
  }

  function toMaps(bytes, number) {
    const values = Float32Array.from(bytes, (value) => value / 255), size = values.length / number;
    return Array.from({ length: number }, (_, i) => toMap(values.subarray(i * size, (i + 1) * size)));
  }

  function load(data) {
    side = Object.values(data.domains)[0].images.shape[2];
    layerNames = Object.keys(data.kept);
    for (const [name, domain] of Object.entries(data.domains)) {
      const all = bytes(domain.images.pixels), number = domain.images.shape[0];
      pictures[name] = { bytes: all, size: all.length / number };
      images[name] = toMaps(all, number);
      labels[name] = domain.images.labels;
      calibration[name] = toMaps(bytes(domain.calibration.pixels), domain.calibration.shape[0]);
    }
    for (const [unseen, { weights }] of Object.entries(data.networks)) {
      const values = new Float32Array(bytes(weights).buffer), tensors = {};
      let start = 0;
      for (const [name, shape] of Object.entries(data.tensors)) {
        const end = start + shape.reduce((a, b) => a * b);
        tensors[name] = { shape, values: values.subarray(start, end) };
        start = end;
      }
      const network = (networks[unseen] = dgConvnet(tensors, side));
      network.whole = { network, kept: network.layers.map(all), statistics: network.trained };
    }
    port.postMessage({ ready: true, pictures, labels });
  }

  /* Classifies all images, the domains in turn, and pauses after each; counts in `progress`. */
  function* classifyAll({ network, kept, statistics }, progress) {
    const predicted = {}, names = Object.keys(images);
    for (const name of names) predicted[name] = [];
    for (let i = 0; i < images[names[0]].length; i++) {
      for (const name of names) {
        const guess = largest(network.logits(images[name][i], kept, statistics));
        predicted[name].push(guess);
        if (progress) {
          progress.seen[name] = i + 1;
          progress.right[name] = (progress.right[name] ?? 0) + (guess === labels[name][i]);
        }
        yield;
      }
    }
    return predicted;
  }

  function* steps(job, progress) {
    const network = networks[job.unseen];
    const kept = network.layers.map((layer, l) => {
      const removed = new Set(job.removed[layerNames[l]]);
      return all(layer).filter((filter) => !removed.has(filter));
    });
    let statistics = network.trained;
    if (job.recalibrate) {
      const sources = Object.keys(calibration).filter((name) => name !== job.unseen);
      statistics = yield* network.recalibrate(sources.flatMap((name) => calibration[name]), kept);
    }
    setting = { network, kept, statistics };
    progress.milliseconds = 0; // the time of the images alone
    const after = yield* classifyAll(setting, progress);
    const milliseconds = progress.milliseconds;
    if (!unpruned[job.unseen]) { // once for each network
      progress.milliseconds = 0;
      const before = yield* classifyAll(network.whole);
      unpruned[job.unseen] = { before, milliseconds: progress.milliseconds };
    }
    const whole = unpruned[job.unseen];
    if (kept.every((filters, l) => filters.length === network.layers[l].filters))
      whole.milliseconds = Math.min(whole.milliseconds, milliseconds); // once the code is warm
    return {
      finished: true, after, before: whole.before,
      milliseconds, millisecondsUnpruned: whole.milliseconds,
      multiplications: network.multiplications(kept),
      multiplicationsUnpruned: network.multiplications(network.whole.kept),
    };
  }

  async function run(job) {
    current = job;
    const progress = { seen: {}, right: {}, milliseconds: 0 };
    const work = steps(job, progress);
    while (job === current) {
      const start = performance.now();
      let step, now;
      do {
        const before = performance.now();
        step = work.next();
        now = performance.now();
        progress.milliseconds += now - before;
      } while (!step.done && now - start < SLICE);
      port.postMessage({ run: job.run, ...progress, ...step.value });
      if (step.done) return;
      await new Promise((resume) => setTimeout(resume)); // hear messages
    }
  }

  function probabilities({ network, kept, statistics }, map) {
    const logits = network.logits(map, kept, statistics), most = Math.max(...logits);
    const powers = logits.map((value) => Math.exp(value - most));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map((value) => value / sum);
  }

  function classifyOne({ picture, pixels, domain, index }) {
    const map = pixels ? toMap(pixels) : images[domain][index];
    const before = probabilities(setting.network.whole, map);
    port.postMessage({ picture, before, after: probabilities(setting, map) });
  }

  port.onmessage = ({ data }) => {
    if (data.data) load(data.data);
    else if (data.run) run(data);
    else if (setting) classifyOne(data);
  };
}
