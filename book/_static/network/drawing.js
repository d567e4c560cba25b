"use strict";
/* A canvas to draw a digit on, brought to the size and place of MNIST's digits: 28×28, the ink in a
   box of 20×20, its centre of mass in the middle. */

function dgDrawing(canvas, changed) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const side = canvas.width;
  let last = null;

  function clear() {
    context.clearRect(0, 0, side, side);
    changed();
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * (side / box.width), (event.clientY - box.top) * (side / box.height)];
  }

  function lineTo(point) {
    context.lineWidth = side / 12;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...point);
    context.stroke();
    last = point;
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    lineTo(last); // a dot
  });
  canvas.addEventListener("pointermove", (event) => last && lineTo(place(event)));
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, () => {
      if (last) changed();
      last = null;
    });

  const alpha = (pixels, i) => pixels[4 * i + 3] / 255;

  /* Left, top, right and bottom of the ink, or null when there is none. */
  function inkBox() {
    const pixels = context.getImageData(0, 0, side, side).data;
    let left = side, top = side, right = -1, bottom = -1;
    for (let i = 0; i < side * side; i++) {
      if (alpha(pixels, i) < 0.1) continue;
      const x = i % side, y = (i - x) / side;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y);
    }
    return right < 0 ? null : [left, top, right + 1, bottom + 1];
  }

  function shrink([left, top, right, bottom], x, y) {
    const small = new OffscreenCanvas(28, 28).getContext("2d");
    small.imageSmoothingQuality = "high";
    const scale = 20 / Math.max(right - left, bottom - top);
    const [width, height] = [(right - left) * scale, (bottom - top) * scale];
    small.drawImage(canvas, left, top, right - left, bottom - top, x - width / 2, y - height / 2, width, height);
    const pixels = small.getImageData(0, 0, 28, 28).data;
    return Array.from({ length: 784 }, (_, i) => alpha(pixels, i));
  }

  /* How much ink each of the 28×28 pixels has, 0 to 1, or null when nothing is drawn. */
  function ink() {
    const box = inkBox();
    if (!box) return null;
    const once = shrink(box, 14, 14), total = once.reduce((a, b) => a + b);
    const x = once.reduce((sum, value, i) => sum + value * ((i % 28) + 0.5), 0) / total;
    const y = once.reduce((sum, value, i) => sum + value * (Math.floor(i / 28) + 0.5), 0) / total;
    return shrink(box, 28 - x, 28 - y);
  }

  /* The colour of the ink, also of what is drawn already. */
  function colour(css) {
    context.globalCompositeOperation = "source-in";
    context.fillStyle = context.strokeStyle = css;
    context.fillRect(0, 0, side, side);
    context.globalCompositeOperation = "source-over";
  }

  return { clear, colour, ink };
}
