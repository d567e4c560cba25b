"use strict";
/* The controls of the chapter, and what they show. All computing is in worker.js. */

(() => {
  const root = document.getElementById("dg-network");
  const data = globalThis.dgpruneData;
  if (!root || !data) return; // a notebook: the note that stands there says where to go

  const domains = Object.keys(data.domains), layers = Object.keys(data.kept);
  const size = (layer) => data.kept[layer][0];
  const removed = Object.fromEntries(layers.map((layer) => [layer, new Set()]));
  let run = 0, pictures = null, labels = null, result = null, chosen = null, picture = 0, speak = false;

  // --- Small helpers ---------------------------------------------------------------------

  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }

  const options = (names, labels = names) =>
    Object.keys(names).map((key) => element("option", { value: Array.isArray(names) ? names[key] : key }, labels[key]));

  const percent = (right, of) => (of ? `${Math.round((100 * right) / of)} %` : "–");
  const role = (domain) => (domain === unseen.value ? "unseen" : "in-domain");
  const field = (label, ...controls) => element("div", { class: "dg-field" }, label, ...controls);
  const labelled = (text, control) => field(element("label", { for: control.id }, text), control);

  // --- Controls --------------------------------------------------------------------------

  const unseen = element("select", { id: "dg-unseen", onchange: follow }, ...options(domains));
  unseen.value = "mnist_m" in data.domains ? "mnist_m" : domains[0];
  const criterion = element("select", { id: "dg-criterion", onchange: follow }, ...options(data.criteria));
  const ratio = element("input", {
    id: "dg-ratio", type: "range", min: 0, max: data.ratios.length - 1, step: 1, value: 0, oninput: follow,
  });
  const ratioText = element("output", { for: "dg-ratio" });
  const recalibrate = element("input", { id: "dg-recalibrate", type: "checkbox", onchange: compute });
  const controls = element("div", { class: "dg-controls" },
    labelled("Unseen domain", unseen),
    labelled("Criterion", criterion),
    field(element("label", { for: "dg-ratio" }, "Pruning ratio "), ratioText, ratio),
    element("div", { class: "dg-field dg-row dg-switch" },
      recalibrate, element("label", { for: "dg-recalibrate" }, "Recalibrate BatchNorm")),
  );

  /* Removes what the criterion says; filters switched by hand are forgotten. */
  function follow() {
    const step = Number(ratio.value), order = data.networks[unseen.value].order[criterion.value];
    for (const layer of layers)
      removed[layer] = new Set(order[layer].slice(0, size(layer) - data.kept[layer][step]));
    compute();
  }

  // --- The map of the filters ------------------------------------------------------------

  const buttons = {};
  const map = element("div", { class: "dg-map" }, ...layers.map((layer) => {
    buttons[layer] = Array.from({ length: size(layer) }, (_, filter) =>
      element("button", {
        type: "button", class: "dg-filter", "aria-label": `${layer}, filter ${filter}`,
        tabindex: filter ? -1 : 0, onclick: () => toggle(layer, filter),
      }, String(filter)));
    const count = element("span", { class: "dg-count", id: `dg-count-${layer}` });
    return element("div", { class: "dg-layer" },
      element("span", { class: "dg-name", "aria-hidden": "true" }, layer), count,
      element("div", {
        class: "dg-filters", role: "toolbar", "aria-label": `Filters of ${layer}`,
        "aria-describedby": `dg-count-${layer}`, onkeydown: (event) => moveFocus(event, buttons[layer]),
      }, ...buttons[layer]));
  }));

  function toggle(layer, filter) {
    if (!removed[layer].delete(filter)) removed[layer].add(filter);
    compute();
  }

  /* Arrow keys move within a layer, Tab leaves it: one tab stop a layer. */
  function moveFocus(event, row) {
    const here = row.indexOf(document.activeElement);
    const there = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: row.length - 1 }[event.key];
    if (there === undefined) return;
    event.preventDefault();
    const next = row[(there + row.length) % row.length];
    for (const button of row) button.tabIndex = button === next ? 0 : -1;
    next.focus();
  }

  // --- Results ---------------------------------------------------------------------------

  const rows = Object.fromEntries(domains.map((domain) => {
    const cells = {
      name: element("th", { scope: "row" }),
      bar: element("div", { class: "dg-bar" }),
      mark: element("div", { class: "dg-mark" }),
      now: element("td", { class: "dg-number" }),
      before: element("td", { class: "dg-number" }),
    };
    return [domain, cells];
  }));
  const table = element("table", { class: "dg-table" },
    element("caption", {}, `Accuracy on ${data.domains[domains[0]].images.shape[0]} test images of each domain`),
    element("thead", {}, element("tr", {},
      ...["Domain", "", "now", "unpruned"].map((text) => element(text ? "th" : "td", text ? { scope: "col" } : {}, text)))),
    element("tbody", {}, ...domains.map((domain) => element("tr", { "data-domain": domain },
      rows[domain].name,
      element("td", { class: "dg-bars", "aria-hidden": "true" }, element("div", { class: "dg-track" }, rows[domain].bar, rows[domain].mark)),
      rows[domain].now, rows[domain].before))));
  const cost = element("p", { class: "dg-cost" });
  const status = element("p", { class: "dg-sr", role: "status" });

  function showCounts({ seen, right }) {
    for (const domain of domains) {
      const cells = rows[domain], share = (right[domain] ?? 0) / (seen[domain] || 1);
      cells.bar.style.width = `${100 * share}%`;
      cells.now.textContent = percent(right[domain] ?? 0, seen[domain]);
    }
    const count = Object.values(seen).reduce((a, b) => a + b, 0);
    if (count < total()) cost.textContent = `${count} of ${total()} images …`;
  }

  const total = () => domains.reduce((sum, domain) => sum + data.domains[domain].images.shape[0], 0);

  function showRoles() {
    for (const domain of domains) {
      const cells = rows[domain], tr = cells.name.parentElement;
      cells.name.replaceChildren(domain, element("span", { class: "dg-role" }, role(domain)));
      tr.className = role(domain) === "unseen" ? "dg-unseen" : "dg-in";
    }
  }

  function showFilters() {
    for (const layer of layers) {
      buttons[layer].forEach((button, filter) => button.setAttribute("aria-pressed", !removed[layer].has(filter)));
      document.getElementById(`dg-count-${layer}`).textContent = `${size(layer) - removed[layer].size} of ${size(layer)} stay`;
    }
    const value = data.ratios[ratio.value];
    ratioText.textContent = value.toFixed(2);
    ratio.setAttribute("aria-valuetext", `${value.toFixed(2)} of the filters of each layer`);
  }

  const rightOf = (predicted, domain) => predicted[domain].filter((guess, i) => guess === labels[domain][i]).length;

  function showFinal(message) {
    for (const domain of domains) {
      const right = rightOf(message.before, domain), of = labels[domain].length;
      rows[domain].before.textContent = percent(right, of);
      rows[domain].mark.style.left = `${(100 * right) / of}%`;
    }
    const share = Math.round((100 * message.multiplications) / message.multiplicationsUnpruned);
    cost.replaceChildren(
      element("strong", { id: "dg-time" }, `${Math.round(message.milliseconds)} ms`),
      ` for ${total()} images; ${Math.round(message.millisecondsUnpruned)} ms unpruned. `,
      element("strong", { id: "dg-work" }, `${share} %`), " of the multiplications are left.");
    const inside = domains.filter((domain) => domain !== unseen.value);
    const mean = inside.reduce((sum, domain) => sum + rightOf(message.after, domain) / labels[domain].length, 0) / inside.length;
    announce(`In-domain ${percent(mean, 1)}, unseen ${unseen.value} ${rows[unseen.value].now.textContent}. `
      + `${share} % of the multiplications are left.`);
  }

  let announcement;
  function announce(text) { // once the reader pauses, not at every step of the slider
    clearTimeout(announcement);
    announcement = setTimeout(() => { status.textContent = text; }, 800);
  }

  // --- Pictures --------------------------------------------------------------------------

  /* Pixels 0 to 255, by colour and row, on a canvas; grey ones have one colour. */
  function paint(canvas, pixels) {
    const image = new ImageData(28, 28), green = 784 % pixels.length, blue = 1568 % pixels.length;
    for (let i = 0, out = 0; i < 784; i++) {
      image.data[out++] = pixels[i];
      image.data[out++] = pixels[green + i];
      image.data[out++] = pixels[blue + i];
      image.data[out++] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function pixelsOf({ domain, index }) {
    const { bytes, size } = pictures[domain];
    return bytes.subarray(index * size, (index + 1) * size);
  }

  const newCanvas = (attributes) => element("canvas", { width: 28, height: 28, ...attributes });

  const flipText = element("p", {});
  const flipList = element("ul", { class: "dg-flips" });
  const SHOWN = 24;

  function showFlips({ before, after }) {
    const worse = [], better = [];
    for (let i = 0; i < labels[domains[0]].length; i++)
      for (const domain of domains) {
        const label = labels[domain][i], was = before[domain][i] === label, is = after[domain][i] === label;
        if (was && !is) worse.push({ domain, index: i, label, guess: after[domain][i] });
        if (!was && is) better.push(domain);
      }
    const counts = domains.map((domain) => `${domain} ${worse.filter((flip) => flip.domain === domain).length}`);
    flipText.textContent = worse.length
      ? `${worse.length} images went from right to wrong (${counts.join(", ")}), ${better.length} from wrong to right. `
        + `${worse.length > SHOWN ? `The first ${SHOWN}: ` : ""}class, and what the pruned network says. Select one to look closer.`
      : `No image went from right to wrong, ${better.length} from wrong to right.`;
    flipList.replaceChildren(...worse.slice(0, SHOWN).map((flip) => {
      const canvas = newCanvas({ "aria-hidden": "true" });
      paint(canvas, pixelsOf(flip));
      return element("li", {}, element("button", {
        type: "button", class: `dg-flip ${role(flip.domain) === "unseen" ? "dg-unseen" : "dg-in"}`,
        "aria-label": `${flip.domain}, ${role(flip.domain)}: a ${flip.label} taken for a ${flip.guess}`,
        onclick: () => { choose(flip); verdict.scrollIntoView({ block: "nearest" }); },
      }, canvas, `${flip.label} → ${flip.guess}`));
    }));
  }

  // --- One picture, two networks ---------------------------------------------------------

  const COLOURS = { // paper, ink
    "white on black": [[0, 0, 0], [1, 1, 1]],
    "black on white": [[1, 1, 1], [0, 0, 0]],
    "yellow on blue": [[0.1, 0.2, 0.6], [1, 0.85, 0.2]],
  };
  const colours = element("select", { id: "dg-colours", onchange: drawn }, ...options(Object.keys(COLOURS)));
  const sheet = element("canvas", { width: 168, height: 168, class: "dg-sheet", role: "img", "aria-label": "Drawing area for a mouse, pen or finger; without one, take a test image" });
  const drawing = dgDrawing(sheet, drawn);
  const from = element("select", { id: "dg-from", onchange: pick }, ...options(domains));
  const number = element("input", { id: "dg-number", type: "number", min: 1, value: 1, oninput: pick });
  const input = newCanvas({ class: "dg-input", role: "img", "aria-label": "No digit yet" });
  const answers = ["Unpruned", "Now"].map((title) => ({
    title, guess: element("span", { class: "dg-guess" }, "–"), list: element("ol", { class: "dg-best" }),
  }));
  const about = element("p", { class: "dg-about" });
  const verdict = element("div", { class: "dg-verdict" }, about,
    ...answers.map(({ title, guess, list }) => element("div", { class: "dg-answer" }, element("h4", {}, title), guess, list)));

  function drawn() {
    const [paper, pen] = COLOURS[colours.value];
    const css = (colour) => `rgb(${colour.map((value) => 255 * value).join(" ")})`;
    sheet.style.setProperty("--dg-sheet", css(paper));
    drawing.colour(css(pen));
    const ink = drawing.ink();
    if (!ink) return chosen?.domain ? undefined : choose(null);
    const pixels = [0, 1, 2].flatMap((c) => ink.map((value) => paper[c] + value * (pen[c] - paper[c])));
    choose({ pixels });
  }

  function pick() {
    const count = data.domains[from.value].images.shape[0];
    number.max = count;
    const index = Math.min(Math.max(Math.round(Number(number.value)) || 1, 1), count) - 1;
    choose({ domain: from.value, index });
  }

  function choose(next) {
    chosen = next;
    speak = true;
    if (next?.domain) {
      from.value = next.domain;
      number.value = next.index + 1;
    }
    ask();
  }

  function ask() {
    if (!chosen) {
      about.textContent = "Draw a digit, or take a test image.";
      paint(input, [...new Array(784).fill(0)]);
      for (const { guess, list } of answers) {
        guess.textContent = "–";
        list.replaceChildren();
      }
      return;
    }
    if (!pictures) return;
    paint(input, chosen.pixels?.map((value) => 255 * value) ?? pixelsOf(chosen));
    const what = chosen.pixels ? "Your drawing" : `Image ${chosen.index + 1} of ${chosen.domain} (${role(chosen.domain)}), a ${labels[chosen.domain][chosen.index]}`;
    about.textContent = `${what}, as the networks see it:`;
    input.setAttribute("aria-label", what);
    if (result) worker.postMessage({ picture: ++picture, ...chosen });
  }

  function showAnswer(message) {
    const [before, after] = [message.before, message.after].map((p) => p.indexOf(Math.max(...p)));
    if (speak) announce(`Unpruned: ${before}. Now: ${after}.`);
    speak = false;
    [message.before, message.after].forEach((probabilities, i) => {
      const best = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 3);
      answers[i].guess.textContent = best[0];
      answers[i].list.replaceChildren(...best.map((k) => {
        const bar = element("span", { class: "dg-bar" });
        bar.style.width = `${100 * probabilities[k]}%`;
        return element("li", {}, `${k}: ${percent(probabilities[k], 1)}`, element("span", { class: "dg-track", "aria-hidden": "true" }, bar));
      }));
    });
  }

  // --- The worker ------------------------------------------------------------------------

  /* From a Blob, so that it also starts on a page that was opened as a file. Where a page may not
     start one, the same code runs here, in short slices. */
  function startWorker() {
    try {
      const code = `"use strict";${dgConvnet}\n${dgWorker}\ndgWorker(self);`;
      return new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    } catch {
      const channel = new MessageChannel();
      dgWorker(channel.port1);
      return channel.port2;
    }
  }

  function compute() {
    showRoles();
    showFilters();
    if (!pictures) return; // still starting
    result = null;
    root.setAttribute("aria-busy", "true");
    const lists = Object.fromEntries(layers.map((layer) => [layer, [...removed[layer]]]));
    worker.postMessage({ run: ++run, unseen: unseen.value, removed: lists, recalibrate: recalibrate.checked });
  }

  let frame = 0, latest = null;
  function receive({ data: message }) {
    if (message.ready) {
      ({ pictures, labels } = message);
      compute();
    } else if (message.run === run) {
      latest = message;
      frame ||= requestAnimationFrame(update);
    } else if (message.picture === picture) showAnswer(message);
  }

  function update() {
    frame = 0;
    const message = latest;
    if (message.run !== run) return;
    showCounts(message);
    if (!message.finished) return;
    result = message;
    showFinal(message);
    requestAnimationFrame(() => { // the pictures in a task of their own: none may take long
      if (result !== message) return;
      showFlips(message);
      root.setAttribute("aria-busy", "false");
      ask();
    });
  }

  const again = element("button", { type: "button", onclick: () => { ratio.value = 0; follow(); } }, "Put all filters back");
  root.replaceChildren(
    controls,
    element("div", { class: "dg-results" }, table, cost),
    element("h3", {}, "The filters"),
    element("p", {}, "Each square is a filter. Press it to take it out or to put it back. ", again),
    map,
    element("h3", {}, "From right to wrong"), flipText, flipList,
    element("h3", {}, "One image, two networks"),
    element("div", { class: "dg-try" },
      element("div", {}, sheet, element("div", { class: "dg-row" },
        element("button", { type: "button", onclick: drawing.clear }, "Clear"), labelled("Colours", colours)),
        element("div", { class: "dg-row" }, labelled("Or take an image of", from), labelled("number", number))),
      element("div", {}, input, verdict)),
    status,
  );
  ask();
  showRoles();
  showFilters();
  let worker;
  setTimeout(() => { // a task of its own, too
    worker = startWorker();
    worker.onmessage = receive;
    worker.postMessage({ data });
  });
})();
