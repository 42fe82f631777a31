"use strict";
// What all pictures share: unpacking arrays, numbers as people read them, axes, tooltips, and the span of rows that charts over time show.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function unpack(packed) {
  const text = atob(packed.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const kinds = { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };
  const values = new kinds[packed.type](bytes.buffer);
  values.shape = packed.shape;
  return values;
}

const plain = (value, digits = 3) => Number.isInteger(value) ? value.toLocaleString("en-US") : Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumSignificantDigits: digits });
const percent = (value) => (100 * value).toFixed(value < 0.1 ? 2 : 1) + "%";
function scaled(value, units) {
  for (const [size, name] of units) if (Math.abs(value) >= size) return Number((value / size).toPrecision(4)) + " " + name;
  return value === 0 ? "0" : Number(value.toPrecision(3)) + " " + units[units.length - 1][2];
}
const bytesText = (value) => scaled(value, [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB", "B"]]);
const secondsText = (value) => scaled(value, [[3600, "h"], [60, "min"], [1, "s"], [1e-3, "ms"], [1e-6, "us", "s"]]);

// Round numbers between low and high, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) || rough;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}
function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const n of [1, 2, 5]) if (n * 10 ** power >= low * 0.999 && n * 10 ** power <= high * 1.001) found.push(Number((n * 10 ** power).toPrecision(3)));
  return found;
}

function tip(event, lines) {
  const box = byId("tip");
  if (!lines) { box.style.display = "none"; return; }
  box.replaceChildren(...lines.map(([colour, text]) => {
    const line = document.createElement("div");
    if (colour) { const square = document.createElement("i"); square.className = "swatch"; square.style.background = colour; line.append(square); }
    line.append(text);
    return line;
  }));
  box.style.display = "block";
  const left = event.clientX + 16 + box.offsetWidth > innerWidth ? event.clientX - box.offsetWidth - 12 : event.clientX + 16;
  box.style.left = Math.max(4, left) + "px";
  box.style.top = clamp(event.clientY + 14, 4, Math.max(4, innerHeight - box.offsetHeight - 4)) + "px";
}

// entries: [colour, text, "" | "line" | "dashed"]
function legend(name, entries) {
  for (const place of all(`[data-legend="${name}"]`)) place.replaceChildren(...entries.map(([colour, text, kind]) => {
    const entry = document.createElement("span"), mark = document.createElement("i");
    mark.className = "swatch " + (kind || "");
    mark.style.background = colour; mark.style.borderColor = colour;
    entry.append(mark, text);
    return entry;
  }));
}

const charts = [];
const LEFT = 74, RIGHT = 18, TOP = 20, BOTTOM = 36;

// options: draw(g, box) and hover(x, y, box) in CSS pixels; hover returns tooltip lines or null.
function chart(id, options) {
  const host = byId(id);
  if (!host) return null;
  const canvas = document.createElement("canvas"), brush = document.createElement("div");
  brush.className = "brush";
  host.append(canvas, brush);
  const self = { id, host, canvas, brush, options };
  self.box = () => ({ x: LEFT, y: TOP, w: host.clientWidth - LEFT - RIGHT, h: Number(host.dataset.height) - TOP - BOTTOM });
  self.draw = () => {
    if (!host.offsetParent || host.clientWidth < 200) return;
    const ratio = window.devicePixelRatio || 1, height = Number(host.dataset.height);
    canvas.width = Math.round(host.clientWidth * ratio); canvas.height = Math.round(height * ratio);
    canvas.style.height = height + "px";
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    options.draw(g, self.box());
  };
  canvas.addEventListener("mousemove", (event) => {
    const area = canvas.getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top, box = self.box();
    const inside = x >= box.x && x <= box.x + box.w && y >= box.y && y <= box.y + box.h;
    tip(event, inside && options.hover ? options.hover(x, y, box) : null);
  });
  canvas.addEventListener("mouseleave", () => tip(null, null));
  charts.push(self);
  return self;
}

function frame(g, box) { g.strokeStyle = "#b9bfc5"; g.lineWidth = 1; g.strokeRect(box.x + 0.5, box.y + 0.5, box.w - 1, box.h - 1); }

// marks: [[value, text]]; place(value) gives the pixel.
function yAxis(g, box, marks, place, label, grid = true) {
  g.textAlign = "right"; g.textBaseline = "middle";
  for (const [value, text] of marks) {
    const y = place(value);
    if (y < box.y - 1 || y > box.y + box.h + 1) continue;
    if (grid) { g.strokeStyle = "#eceeef"; g.beginPath(); g.moveTo(box.x, Math.round(y) + 0.5); g.lineTo(box.x + box.w, Math.round(y) + 0.5); g.stroke(); }
    g.fillStyle = "#4d565e"; g.fillText(text, box.x - 6, y);
  }
  g.save(); g.translate(12, box.y + box.h / 2); g.rotate(-Math.PI / 2);
  g.textAlign = "center"; g.fillStyle = "#4d565e"; g.fillText(label, 0, 0); g.restore();
}
function xAxis(g, box, marks, place, label) {
  g.textBaseline = "top";
  for (const [value, text] of marks) {
    const x = place(value);
    if (x < box.x - 1 || x > box.x + box.w + 1) continue;
    g.strokeStyle = "#b9bfc5"; g.beginPath(); g.moveTo(x, box.y + box.h); g.lineTo(x, box.y + box.h + 4); g.stroke();
    g.textAlign = x > box.x + box.w - 20 ? "right" : "center"; g.fillStyle = "#4d565e"; g.fillText(text, x, box.y + box.h + 6);
  }
  g.textAlign = "center"; g.fillStyle = "#4d565e"; g.fillText(label, box.x + box.w / 2, box.y + box.h + 20);
}

function line(g, box, points, colour, options = {}) {
  g.save(); g.beginPath(); g.rect(box.x, box.y - 1, box.w, box.h + 2); g.clip();
  g.strokeStyle = colour; g.lineWidth = options.width || 1.4; g.setLineDash(options.dash || []);
  g.beginPath();
  points.forEach(([x, y], index) => index ? g.lineTo(x, y) : g.moveTo(x, y));
  g.stroke(); g.restore();
}

// Index of the bin of `edges` that holds `value`.
function binOf(edges, value) {
  let low = 0, high = edges.length - 2;
  while (low < high) { const middle = (low + high + 1) >> 1; if (edges[middle] <= value) low = middle; else high = middle - 1; }
  return low;
}

// A picture of cells, one per pixel at most: colour(column, row) gives [r, g, b]; columns and rows are those of the pixels.
function cells(g, box, rows, columnOf, colour) {
  const width = Math.max(1, Math.round(box.w)), picture = new ImageData(width, rows);
  for (let x = 0; x < width; x++) {
    const column = columnOf((x + 0.5) / width);
    for (let y = 0; y < rows; y++) {
      const [red, green, blue] = colour(column, y), at = 4 * (y * width + x);
      picture.data[at] = red; picture.data[at + 1] = green; picture.data[at + 2] = blue; picture.data[at + 3] = 255;
    }
  }
  const off = document.createElement("canvas");
  off.width = width; off.height = rows;
  off.getContext("2d").putImageData(picture, 0, 0);
  g.imageSmoothingEnabled = rows > box.h;
  g.drawImage(off, box.x, box.y, box.w, box.h);
}
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
// White over blue to near black, for shares from 0 to 1.
function shade(share) {
  const stops = [[255, 255, 255], [196, 219, 236], [98, 155, 199], [34, 92, 148], [10, 34, 74]];
  const at = clamp(share, 0, 1) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(at)), part = at - low;
  return stops[low].map((value, index) => Math.round(value + part * (stops[low + 1][index] - value)));
}
