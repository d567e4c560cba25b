"use strict";
/* The network in plain JavaScript: what PyTorch computes in eval mode, without the filters removed.

The loops run over the filters that stay, so a pruned network is faster here, as it is in PyTorch.
Every map has a border of zeros: (channels, side + 2, side + 2). `kept` holds, for each layer, the
numbers of the filters that stay. */

function dgConvnet(tensors, side) {
  const COLOURS = [0, 1, 2];
  const layers = [1, 2, 3].map((number) => {
    const weight = tensors[`conv${number}.weight`];
    const bn = (name) => tensors[`bn${number}.${name}`].values;
    const [filters, inputs] = weight.shape;
    const trained = { mean: bn("running_mean"), variance: bn("running_var") };
    return {
      weight: weight.values, filters, inputs, trained, gamma: bn("weight"), beta: bn("bias"),
      side: side >> (number - 1), // 28, 14, 7: each layer ends with a pooling
    };
  });
  const last = layers[2].side >> 1;
  const newMap = (channels, size) => new Float32Array(channels * (size + 2) ** 2);
  const sums = layers.map((layer) => new Float32Array(layer.filters * layer.side ** 2));
  const maps = layers.map((layer) => newMap(layer.filters, layer.side >> 1));

  /* 3×3 convolution: (inputs, side + 2, side + 2) -> (filters, side, side) */
  function convolve(layer, input, inputsKept, filtersKept, output) {
    const side = layer.side, row = side + 2, weight = layer.weight;
    for (const filter of filtersKept) {
      const start = filter * side * side;
      output.fill(0, start, start + side * side);
      for (const channel of inputsKept) {
        const w = 9 * (filter * layer.inputs + channel);
        const w0 = weight[w], w1 = weight[w + 1], w2 = weight[w + 2];
        const w3 = weight[w + 3], w4 = weight[w + 4], w5 = weight[w + 5];
        const w6 = weight[w + 6], w7 = weight[w + 7], w8 = weight[w + 8];
        for (let y = 0; y < side; y++) {
          let a = (channel * row + y) * row, b = a + row, c = b + row; // rows
          let a0 = input[a++], a1 = input[a++]; // the last two values of each
          let b0 = input[b++], b1 = input[b++];
          let c0 = input[c++], c1 = input[c++];
          const end = start + (y + 1) * side;
          for (let i = end - side; i < end; i++) {
            const a2 = input[a++], b2 = input[b++], c2 = input[c++];
            output[i] += w0 * a0 + w1 * a1 + w2 * a2
              + w3 * b0 + w4 * b1 + w5 * b2 + w6 * c0 + w7 * c1 + w8 * c2;
            a0 = a1; a1 = a2; b0 = b1; b1 = b2; c0 = c1; c1 = c2;
          }
        }
      }
    }
  }

  /* BatchNorm, 2×2 max pooling and ReLU: (filters, side, side) -> a map of half the side. */
  function finish(layer, sums, filtersKept, statistics, output) {
    const side = layer.side, half = side >> 1, row = half + 2;
    for (const filter of filtersKept) {
      const scale = layer.gamma[filter] / Math.sqrt(statistics.variance[filter] + 1e-5);
      const shift = layer.beta[filter] - scale * statistics.mean[filter];
      for (let y = 0; y < half; y++) {
        let out = (filter * row + y + 1) * row + 1;
        let i = (filter * side + 2 * y) * side;
        for (let x = 0; x < half; x++, i += 2) {
          const most = Math.max(
            scale * sums[i], scale * sums[i + 1], scale * sums[i + side], scale * sums[i + side + 1],
          );
          output[out++] = Math.max(0, most + shift);
        }
      }
    }
  }

  /* An image as a map -> 10 logits. `statistics`: mean and variance for each layer. */
  function logits(image, kept, statistics) {
    let input = image, inputsKept = COLOURS;
    layers.forEach((layer, l) => {
      convolve(layer, input, inputsKept, kept[l], sums[l]);
      finish(layer, sums[l], kept[l], statistics[l], maps[l]);
      input = maps[l];
      inputsKept = kept[l];
    });
    const { values: weight, shape } = tensors["fc.weight"];
    return Array.from(tensors["fc.bias"].values, (bias, k) => {
      let sum = bias;
      for (const channel of inputsKept) {
        let w = k * shape[1] + channel * last * last;
        for (let y = 1; y <= last; y++)
          for (let x = 1; x <= last; x++) sum += weight[w++] * input[(channel * (last + 2) + y) * (last + 2) + x];
      }
      return sum;
    });
  }

  /* Measures BatchNorm's statistics anew, layer by layer, on all the images as one batch; the
     variance is the unbiased one, as in PyTorch's running_var. Pauses (yields) after each image. */
  function* recalibrate(images, kept) {
    const statistics = [];
    let inputs = images, inputsKept = COLOURS;
    for (const [l, layer] of layers.entries()) {
      const size = layer.side ** 2, n = size * images.length, outputs = [];
      const mean = new Float64Array(layer.filters), variance = new Float64Array(layer.filters);
      for (const input of inputs) {
        const output = new Float32Array(layer.filters * size);
        convolve(layer, input, inputsKept, kept[l], output);
        for (const filter of kept[l]) {
          for (let i = filter * size; i < (filter + 1) * size; i++) {
            mean[filter] += output[i] / n;
            variance[filter] += output[i] ** 2 / n;
          }
        }
        outputs.push(output);
        yield;
      }
      for (const filter of kept[l])
        variance[filter] = (variance[filter] - mean[filter] ** 2) * (n / (n - 1));
      statistics.push({ mean, variance });
      inputs = outputs.map((output) => {
        const map = newMap(layer.filters, layer.side >> 1);
        finish(layer, output, kept[l], statistics[l], map);
        return map;
      });
      inputsKept = kept[l];
    }
    return statistics;
  }

  /* Multiplications for one image: what is left of the work. */
  function multiplications(kept) {
    const inputs = [COLOURS, ...kept];
    const each = layers.map((layer, l) => layer.side ** 2 * 9 * inputs[l].length * kept[l].length);
    return each.reduce((a, b) => a + b) + 10 * last * last * kept[2].length;
  }

  return { layers, logits, recalibrate, multiplications, trained: layers.map((l) => l.trained) };
}
