// Draws the maps of a page and answers its controls. One `view` for each picture; nothing is fetched and nothing kept.
"use strict";

// 256 colours from the lowest value to the highest, three bytes each.
const COLOURS = bytes(PALETTE);

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// A packed array: `shape` ends with the grid h×w. Values are bytes between `low` and `high` of their map; or, where `bits` is
// 4, the square roots of places between bounds that are not kept, so that little is not nothing: only how many times the mean
// the highest is, the `peak`. Returns map number `index`.
function unpack(packed, index) {
  const [h, w] = packed.shape.slice(-2);
  const count = h * w;
  const values = new Float32Array(count);
  packed.bytes ??= bytes(packed.data);
  for (let i = 0, at = index * count; i < count; i++, at++) {
    if (packed.bits === 4) {
      values[i] = ((packed.bytes[at >> 1] >> (at & 1 ? 0 : 4) & 15) / 15) ** 2;
    } else {
      const low = packed.low[index];
      values[i] = low + (packed.bytes[at] / 255) * (packed.high[index] - low);
    }
  }
  const peak = packed.peaks && 2 ** (bytes(packed.peaks)[index] / 16);
  return { values, h, w, peak };
}

function mean(maps) {
  const sum = maps[0].values.slice();
  for (const map of maps.slice(1)) map.values.forEach((value, i) => { sum[i] += value; });
  return { ...maps[0], values: sum.map((value) => value / maps.length) };
}

// h×w → height×width between 0 and 1, bilinear: the middle of a place keeps its value.
function enlarged(map, height, width) {
  const out = new Float32Array(height * width);
  const along = (size, places) => Array.from({ length: size }, (_, i) => {
    const at = Math.min(Math.max((i + 0.5) * places / size - 0.5, 0), places - 1);
    const low = Math.floor(at);
    return [low, Math.min(low + 1, places - 1), at - low];
  });
  const rows = along(height, map.h), columns = along(width, map.w);
  let low = Infinity, high = -Infinity;
  for (let y = 0; y < height; y++) {
    const [top, bottom, down] = rows[y];
    for (let x = 0; x < width; x++) {
      const [left, right, across] = columns[x];
      const above = map.values[top * map.w + left] * (1 - across) + map.values[top * map.w + right] * across;
      const below = map.values[bottom * map.w + left] * (1 - across) + map.values[bottom * map.w + right] * across;
      const value = above * (1 - down) + below * down;
      out[y * width + x] = value;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  const range = high > low ? high - low : 1;
  return out.map((value) => (value - low) / range);
}

function view(box) {
  const data = JSON.parse(box.querySelector("script").textContent);
  const find = (name) => box.querySelector(`.${name}`);
  const picture = find("picture"), drawn = find("drawn"), says = find("says");
  const choice = find("choice"), layer = find("layer"), head = find("heads"), reset = find("reset");
  const { width, height } = data;
  const layers = data.heads ? data.heads.shape[0] : 0, heads = data.heads ? data.heads.shape[1] : 0;
  const state = { map: data.start.map, layer: data.start.layer, head: data.start.head, patch: null };
  let grey = null;

  for (const canvas of [picture, drawn]) [canvas.width, canvas.height] = [width, height];

  // The map that the controls ask for, and a sentence about it.
  function asked() {
    if (state.patch) {
      const [h, w] = data.between.shape.slice(-2);
      const row = Math.floor((state.patch[0] + 0.5) * h / data.grid[0]);
      const column = Math.floor((state.patch[1] + 0.5) * w / data.grid[1]);
      const at = Math.min(state.layer, data.between.shape[0] - 1);
      const map = unpack(data.between, (at * h + row) * w + column);
      return [map, `Layer ${at}, mean of the heads: what the patch in row ${state.patch[0]}, column ${state.patch[1]} pays to the others.`];
    }
    const [kind, number] = state.map.split(":");
    if (kind === "class") return [unpack(data.classes, Number(number)), `What spoke for ${data.names[number]}: rollout weighted by its gradient.`];
    if (kind === "gradcam") return [unpack(data.gradcam, Number(number)), `Grad-CAM: what spoke for ${data.names[number]} in the convolutions.`];
    if (kind === "rollout") {
      const last = Math.min(state.layer, data.rollouts.shape[0] - 1);
      return [unpack(data.rollouts, last), `Rollout through ${last ? `layers 0 to ${last}` : "layer 0"}: where the content of ${data.asker} came from.`];
    }
    const each = Array.from({ length: heads }, (_, i) => i);
    const maps = (state.head < 0 ? each : [state.head]).map((i) => unpack(data.heads, state.layer * heads + i));
    const who = state.layer === data.rollouts.shape[0] ? "the probe" : data.layer_asker;
    const what = state.head < 0 ? "mean of the heads" : `head ${state.head}`;
    return [mean(maps), `${layerName(state.layer)}, ${what}: what ${who} pays to each patch.`];
  }

  function layerName(number) {
    return number < data.rollouts.shape[0] ? `Layer ${number}` : "Attention pooling";
  }

  function draw() {
    const [map, sentence] = asked();
    const share = enlarged(map, height, width);
    const image = new ImageData(width, height);
    for (let i = 0; i < share.length; i++) {
      const colour = 3 * Math.round(255 * share[i]), part = 0.5 + 0.25 * share[i];
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = part * COLOURS[colour + c] + (1 - part) * grey[i];
      image.data[4 * i + 3] = 255;
    }
    drawn.getContext("2d").putImageData(image, 0, 0);
    let best = 0;
    map.values.forEach((value, i) => { if (value > map.values[best]) best = i; });
    const top = map.values[best];
    const shares = !map.peak && ["rollout", "attention"].includes(state.map);
    let strength = shares && top > 0 ? `: ${(100 * top).toPrecision(3)} %` : "";
    if (map.peak && top > 0) strength = `: ${map.peak < 10 ? map.peak.toFixed(1) : Math.round(map.peak)} times the mean`;
    let where = `Highest in row ${Math.floor(best / map.w)}, column ${best % map.w} of ${map.h}×${map.w}`;
    if (map.values.every((value) => value === top)) where = state.patch || top > 0 ? "The same everywhere" : "Nothing anywhere";
    says.textContent = `${sentence} ${where}${strength}.`;
    drawn.setAttribute("aria-label", `The picture under a map. ${says.textContent}`);
    drawPicture();
    const oneLayer = state.patch !== null || state.map === "attention";
    if (layer) layer.disabled = !(oneLayer || state.map === "rollout");
    if (head) head.disabled = state.patch !== null || state.map !== "attention";
    if (reset) reset.disabled = state.patch === null;
    if (layer) { layer.value = state.layer; find("number").textContent = state.layer < data.rollouts.shape[0] ? state.layer : "pool"; }
    if (head) head.value = state.head;
    choice.value = state.patch ? "patch" : state.map;
  }

  function drawPicture() {
    const context = picture.getContext("2d");
    context.putImageData(data.pixels, 0, 0);
    if (!state.patch) return;
    const [h, w] = data.grid;
    const [y, x] = [state.patch[0] * height / h, state.patch[1] * width / w];
    for (const target of [context, drawn.getContext("2d")]) {
      for (const [colour, thick] of [["#000", 4], ["#fff", 2]]) {
        target.strokeStyle = colour;
        target.lineWidth = thick;
        target.strokeRect(x + 2, y + 2, width / w - 4, height / h - 4);
      }
    }
  }

  function ask(row, column) {
    const [h, w] = data.grid;
    state.patch = [Math.min(Math.max(row, 0), h - 1), Math.min(Math.max(column, 0), w - 1)];
    draw();
  }

  function step(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Escape") {
      state.patch = null;
      draw();
    } else if (moves[event.key]) {
      const [down, across] = moves[event.key];
      const from = state.patch;
      if (from) ask(from[0] + down, from[1] + across);
      else ask(data.grid[0] >> 1, data.grid[1] >> 1);
    } else return;
    event.preventDefault();
  }

  choice.addEventListener("change", () => { state.map = choice.value; state.patch = null; draw(); });
  layer?.addEventListener("input", () => { state.layer = Number(layer.value); draw(); });
  head?.addEventListener("change", () => { state.head = Number(head.value); draw(); });
  reset?.addEventListener("click", () => { picture.focus({ preventScroll: true }); state.patch = null; draw(); });  // a disabled button keeps no focus
  if (data.between) {
    for (const canvas of [picture, drawn]) {
      canvas.addEventListener("keydown", step);
      canvas.addEventListener("click", (event) => {
        const area = canvas.getBoundingClientRect();
        picture.focus({ preventScroll: true });  // so that arrow keys go on from there, and Escape ends it
        ask(Math.floor((event.clientY - area.top) / area.height * data.grid[0]),
            Math.floor((event.clientX - area.left) / area.width * data.grid[1]));
      });
    }
  }

  const image = new Image();
  image.onload = () => {
    const context = picture.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, width, height);
    data.pixels = context.getImageData(0, 0, width, height);
    const rgb = data.pixels.data;
    grey = Float32Array.from({ length: width * height }, (_, i) => 0.299 * rgb[4 * i] + 0.587 * rgb[4 * i + 1] + 0.114 * rgb[4 * i + 2]);
    draw();
    box.classList.add("scripted");
  };
  image.src = box.querySelector("img").src;
}

document.querySelectorAll(".look").forEach(view);
