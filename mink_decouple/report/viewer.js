"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const count = data.count;
const place = new Uint16Array(bytes(data.coords).buffer);
const columns = {};
for (const [name, text] of Object.entries(data.columns)) columns[name] = bytes(text);
const NONE = 255, WRONG = [214, 39, 40], RIGHT = [150, 160, 170];

const canvas = document.querySelector("canvas"), context = canvas.getContext("2d", {alpha: false});
const state = {layer: data.layers[0].name, hidden: new Set(), size: 2, cut: data.cut, turn: -0.7, tilt: 0.9, zoom: 1, pan: [0, 0]};
const extent = data.extent, half = extent.map(e => e / 2), radius = Math.hypot(...half) || 1;

// the colour of every point in a layer, and the class by which the legend hides it
const rgb = new Uint32Array(count), group = new Uint8Array(count);
const pack = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;
const palette = data.classes.map(c => pack(c.color));
const legendOf = {
  error: [["right", RIGHT], ["wrong", WRONG], ["no truth", data.none]],
  classes: [...data.classes.map(c => [c.name, c.color]), ["none", data.none]],
};
const kindOf = name => data.layers.find(l => l.name === name).kind;

function paint() {
  const kind = kindOf(state.layer), column = columns[state.layer];
  if (kind === "classes") {
    for (let i = 0; i < count; i++) {
      const c = column[i];
      group[i] = c === NONE ? data.classes.length : c;
      rgb[i] = c === NONE ? pack(data.none) : palette[c];
    }
  } else if (kind === "error") {
    const truth = columns.truth, found = columns.prediction;
    for (let i = 0; i < count; i++) {
      group[i] = truth[i] === NONE ? 2 : truth[i] === found[i] ? 0 : 1;
      rgb[i] = pack(legendOf.error[group[i]][1]);
    }
  } else if (kind === "level") {
    for (let i = 0; i < count; i++) {
      group[i] = 0;
      rgb[i] = pack(data.ramp[column[i]]);
    }
  } else {
    for (let i = 0; i < count; i++) {
      group[i] = 0;
      rgb[i] = pack([column[3 * i], column[3 * i + 1], column[3 * i + 2]]);
    }
  }
  const counts = new Array(256).fill(0);
  for (let i = 0; i < count; i++) counts[group[i]]++;
  legend(kind, counts);
}

function legend(kind, counts) {
  const box = document.getElementById("legend");
  box.replaceChildren();
  const entries = legendOf[kind];
  if (!entries) {
    const note = document.createElement("p");
    note.textContent = kind === "level" ? "dark: unsure, yellow: sure" : "colours of the file";
    box.append(note);
    return;
  }
  entries.forEach(([name, color], number) => {
    if (!counts[number]) return;
    const line = document.createElement("label"), tick = document.createElement("input");
    const swatch = document.createElement("span"), text = document.createElement("span");
    const share = document.createElement("span");
    tick.type = "checkbox";
    tick.checked = !state.hidden.has(number);
    tick.dataset.name = name;
    tick.addEventListener("change", () => {
      tick.checked ? state.hidden.delete(number) : state.hidden.add(number);
      draw();
    });
    swatch.className = "swatch";
    swatch.style.background = `rgb(${color})`;
    text.textContent = name;
    share.className = "share";
    share.textContent = (100 * counts[number] / count).toFixed(1) + " %";
    line.append(tick, swatch, text, share);
    box.append(line);
  });
}

let image, pixels, depth;
function fit() {
  const box = canvas.parentElement.getBoundingClientRect();
  const width = Math.max(1, Math.floor(box.width)), height = Math.max(1, Math.floor(box.height));
  if (image && width === canvas.width && height === canvas.height) return;
  canvas.width = width;
  canvas.height = height;
  image = context.createImageData(width, height);
  pixels = new Uint32Array(image.data.buffer);
  depth = new Float32Array(width * height);
}

// every point is put into the image where it is nearer than what is there
function draw() {
  fit();
  const {width, height} = canvas;
  pixels.fill(0xffffffff);
  depth.fill(Infinity);
  const ct = Math.cos(state.turn), st = Math.sin(state.turn), cp = Math.cos(state.tilt), sp = Math.sin(state.tilt);
  const distance = 3 * radius / state.zoom, focal = 1.35 * Math.min(width, height);
  const scale = extent.map(e => e / 65535), top = state.cut * 65535, size = state.size;
  const before = Math.floor((size - 1) / 2);
  let shown = 0;
  for (let i = 0; i < count; i++) {
    if (state.hidden.has(group[i]) || place[3 * i + 2] > top) continue;
    shown++;
    const x = place[3 * i] * scale[0] - half[0] - state.pan[0], y = place[3 * i + 1] * scale[1] - half[1] - state.pan[1];
    const z = place[3 * i + 2] * scale[2] - half[2];
    const right = ct * x - st * y, away = st * x + ct * y;
    const far = distance + away * cp - z * sp, up = away * sp + z * cp;
    if (far < 1e-3 * radius) continue;
    const px = Math.round(width / 2 + focal * right / far) - before, py = Math.round(height / 2 - focal * up / far) - before;
    const color = rgb[i];
    for (let dy = 0; dy < size; dy++) {
      const row = py + dy;
      if (row < 0 || row >= height) continue;
      for (let dx = 0; dx < size; dx++) {
        const at = px + dx;
        if (at < 0 || at >= width) continue;
        const k = row * width + at;
        if (far < depth[k]) {
          depth[k] = far;
          pixels[k] = color;
        }
      }
    }
  }
  context.putImageData(image, 0, 0);
  const note = document.getElementById("shown");
  note.textContent = `${shown.toLocaleString("en")} of ${count.toLocaleString("en")} points`;
  note.dataset.shown = shown;
}

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

function choose(name) {
  state.layer = name;
  state.hidden.clear();
  for (const button of document.querySelectorAll("#layers button")) {
    button.setAttribute("aria-pressed", button.dataset.layer === name);
  }
  paint();
  draw();
}

data.layers.forEach((layer, number) => {
  const button = document.createElement("button");
  button.textContent = layer.name;
  button.dataset.layer = layer.name;
  button.title = `key ${number + 1}`;
  button.addEventListener("click", () => choose(layer.name));
  document.getElementById("layers").append(button);
});
document.getElementById("size").addEventListener("input", e => { state.size = Number(e.target.value); soon(); });
document.getElementById("cut").addEventListener("input", e => { state.cut = Number(e.target.value) / 100; soon(); });
document.getElementById("all").addEventListener("click", () => { state.hidden.clear(); paint(); draw(); });
document.getElementById("home").addEventListener("click", () => {
  Object.assign(state, {turn: -0.7, tilt: 0.9, zoom: 1, pan: [0, 0]});
  draw();
});
document.addEventListener("keydown", e => {
  const layer = data.layers[Number(e.key) - 1];
  if (layer && !e.ctrlKey && !e.altKey && !e.metaKey) choose(layer.name);
});

// with the focus on the picture, arrows turn it, + and - zoom
canvas.addEventListener("keydown", e => {
  const [turn, tilt, zoom] = {ArrowLeft: [0.1, 0, 1], ArrowRight: [-0.1, 0, 1], ArrowUp: [0, -0.1, 1],
    ArrowDown: [0, 0.1, 1], "+": [0, 0, 1.2], "-": [0, 0, 1 / 1.2]}[e.key] || [];
  if (zoom === undefined || e.ctrlKey || e.metaKey) return;
  e.preventDefault();
  state.turn += turn;
  state.tilt = Math.min(1.57, Math.max(-0.3, state.tilt + tilt));
  state.zoom = Math.min(60, Math.max(0.2, state.zoom * zoom));
  soon();
});

// one pointer turns, the right button, shift or two pointers move, the wheel or two pointers zoom
const held = new Map();
function move(dx, dy) {
  const step = 3 * radius / state.zoom / (1.35 * Math.min(canvas.width, canvas.height));
  const c = Math.cos(state.turn), s = Math.sin(state.turn);
  state.pan[0] += step * (-dx * c + dy * s);
  state.pan[1] += step * (dx * s + dy * c);
}
canvas.addEventListener("contextmenu", e => e.preventDefault());
canvas.addEventListener("pointerdown", e => { canvas.setPointerCapture(e.pointerId); held.set(e.pointerId, e); });
canvas.addEventListener("pointerup", e => held.delete(e.pointerId));
canvas.addEventListener("pointercancel", e => held.delete(e.pointerId));
canvas.addEventListener("pointermove", e => {
  const last = held.get(e.pointerId);
  if (!last) return;
  const dx = e.clientX - last.clientX, dy = e.clientY - last.clientY;
  if (held.size === 2) {
    const other = [...held.values()].find(p => p.pointerId !== e.pointerId);
    const span = p => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY) || 1;
    state.zoom *= span(e) / span(last);
    move(dx / 2, dy / 2);
  } else if (e.buttons & 2 || e.shiftKey) {
    move(dx, dy);
  } else {
    state.turn -= dx * 0.008;
    state.tilt = Math.min(1.57, Math.max(-0.3, state.tilt + dy * 0.008));
  }
  held.set(e.pointerId, e);
  soon();
});
canvas.addEventListener("wheel", e => {
  e.preventDefault();
  state.zoom = Math.min(60, Math.max(0.2, state.zoom * Math.exp(-e.deltaY * 0.0012)));
  soon();
}, {passive: false});
window.addEventListener("resize", soon);
const box = canvas.parentElement.getBoundingClientRect();
state.size = Math.min(6, Math.max(1, Math.round(0.8 * Math.sqrt(box.width * box.height / count))));
document.getElementById("size").value = state.size;
document.getElementById("cut").value = 100 * state.cut;
choose(data.layers[0].name);
})();
