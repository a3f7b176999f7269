"use strict";
// Draws what the server sends (edgemm/view/view.py says in which form). All text goes in by textContent.

const SPAN_MS = 30000;
const GAP_MS = 1500; // two points further apart are not joined
const RETRY_MS = [500, 1000, 2000, 3000];
const PALETTE = ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5"];
const FLOOR_DBFS = -60;

const $ = (id) => document.getElementById(id);
const colors = {};
const plots = [];
let config = null;
let views = {};
let models = {};
let nowMs = 0;
let dirty = false;
let retries = 0;
let pointsTaken = 0;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

function mark(element, name, value) {
  if (element.dataset[name] !== String(value)) element.dataset[name] = value;
}

const ms = (value) => (value === null || value === undefined ? "–" : value.toFixed(1));
const percent = (value) => `${(value * 100).toFixed(0)} %`;
const causes = (counts) =>
  Object.entries(counts).map(([cause, count]) => `${count} ${cause.replaceAll("_", " ")}`).join(", ") || "0";

// Plots.

class Plot {
  constructor(card, title, unit, options = {}) {
    this.series = new Map();
    this.unit = unit;
    this.options = options;
    this.note = make("span", { class: "quiet" });
    this.canvas = make("canvas", { role: "img", "aria-label": `${title}, the last 30 seconds` });
    this.box = make("div", { class: "plot" }, this.canvas);
    this.legend = make("div", { class: "legend" });
    card.replaceChildren(make("header", {}, make("h2", {}, title), this.note), ...(options.above ?? []), this.box, this.legend);
    this.hover = null;
    this.canvas.addEventListener("pointermove", (event) => {
      this.hover = event.offsetX;
      dirty = true;
    });
    this.canvas.addEventListener("pointerleave", () => {
      this.hover = null;
      dirty = true;
    });
    plots.push(this);
  }

  add(key, label, color, dash = false) {
    const swatch = make("i", { "data-dash": dash, "data-bar": Boolean(this.options.bars) });
    const value = make("b", {}, "–");
    this.legend.append(make("span", {}, swatch, label, value));
    this.series.set(key, { color, dash, points: [], swatch, value });
  }

  push(key, time, value) {
    this.series.get(key)?.points.push([time, value]);
  }

  draw() {
    const rect = this.box.getBoundingClientRect();
    const scale = window.devicePixelRatio || 1;
    const width = Math.round(rect.width * scale);
    const height = Math.round(rect.height * scale);
    if (!width || !height) return;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, rect.width, rect.height);
    pen.font = "11px system-ui, sans-serif";
    for (const line of this.series.values()) {
      const old = line.points.findIndex(([time]) => time >= nowMs - SPAN_MS - GAP_MS);
      if (old > 0) line.points.splice(0, old);
    }
    const place = this.frame(pen, rect.width, rect.height);
    if (this.options.bars) this.drawBars(pen, place);
    else for (const line of this.series.values()) this.drawLine(pen, line, place);
    this.drawHover(pen, place);
  }

  range() {
    if (this.options.range) return this.options.range;
    let low = 0;
    let high = this.options.atLeast ?? 1;
    if (this.options.bars) {
      for (const bin of this.bins().values()) high = Math.max(high, [...bin.values()].reduce((a, b) => a + b, 0));
    } else {
      for (const line of this.series.values()) {
        for (const [, value] of line.points) {
          if (value < low) low = value;
          if (value > high) high = value;
        }
      }
    }
    if (this.options.symmetric) {
      const reach = nice(Math.max(high, -low) * 1.08);
      return [-reach, reach];
    }
    return [0, nice(this.options.bars ? high : high * 1.08)];
  }

  frame(pen, width, height) {
    const left = 34;
    const bottom = height - 16;
    const [low, high] = this.range();
    const x = (time) => left + ((time - (nowMs - SPAN_MS)) / SPAN_MS) * (width - left);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - 6);
    pen.textBaseline = "middle";
    pen.lineWidth = 1;
    for (const band of this.options.bands?.() ?? []) {
      pen.fillStyle = colors["--band"];
      pen.fillRect(left, y(band[1]), width - left, y(band[0]) - y(band[1]));
    }
    const step = (high - low) / 4;
    for (let i = 0; i <= 4; i++) {
      const value = low + i * step;
      pen.strokeStyle = Math.abs(value) < 1e-9 ? colors["--line"] : colors["--grid"];
      pen.beginPath();
      pen.moveTo(left, Math.round(y(value)) + 0.5);
      pen.lineTo(width, Math.round(y(value)) + 0.5);
      pen.stroke();
      if (i % 2 === 0) {
        pen.fillStyle = colors["--quiet"];
        pen.textAlign = "right";
        pen.fillText(short(value), left - 6, y(value));
      }
    }
    pen.fillStyle = colors["--quiet"];
    for (let back = 0; back <= SPAN_MS; back += 10000) {
      pen.textAlign = back === 0 ? "right" : back === SPAN_MS ? "left" : "center";
      pen.fillText(back === 0 ? "now" : `−${back / 1000} s`, x(nowMs - back), height - 6);
    }
    for (const [value, color] of this.options.lines?.() ?? []) {
      if (value > high) continue;
      pen.strokeStyle = colors[color];
      pen.setLineDash([3, 3]);
      pen.beginPath();
      pen.moveTo(left, y(value));
      pen.lineTo(width, y(value));
      pen.stroke();
      pen.setLineDash([]);
    }
    return { x, y, left, bottom, width };
  }

  clip(pen, place) {
    pen.save();
    pen.beginPath();
    pen.rect(place.left, 0, place.width - place.left, place.bottom + 1);
    pen.clip();
  }

  drawLine(pen, line, place) {
    this.clip(pen, place);
    pen.strokeStyle = colors[line.color];
    pen.lineWidth = 1.4;
    pen.lineJoin = "round";
    pen.setLineDash(line.dash ? [5, 3] : []);
    pen.beginPath();
    let before = null;
    for (const [time, value] of line.points) {
      if (value === null) continue;
      if (before === null || time - before > GAP_MS || time < before) pen.moveTo(place.x(time), place.y(value));
      else pen.lineTo(place.x(time), place.y(value));
      before = time;
    }
    pen.stroke();
    pen.restore();
  }

  // Bars are the growth of a count in each second.
  bins() {
    const bins = new Map();
    for (const [key, line] of this.series) {
      let before = null;
      for (const [time, value] of line.points) {
        if (before !== null && value > before) {
          const second = Math.floor(time / 1000);
          if (!bins.has(second)) bins.set(second, new Map());
          bins.get(second).set(key, (bins.get(second).get(key) ?? 0) + value - before);
        }
        before = value;
      }
    }
    return bins;
  }

  drawBars(pen, place) {
    this.clip(pen, place);
    const wide = Math.max(2, place.x(1000) - place.x(0) - 2);
    for (const [second, bin] of this.bins()) {
      let base = 0;
      for (const [key, count] of bin) {
        pen.fillStyle = colors[this.series.get(key).color];
        const top = place.y(base + count);
        pen.fillRect(place.x(second * 1000) + 1, top, wide, place.y(base) - top);
        base += count;
      }
    }
    pen.restore();
  }

  drawHover(pen, place) {
    let at = null;
    if (this.hover !== null && this.hover >= place.left) {
      at = nowMs - SPAN_MS + ((this.hover - place.left) / (place.width - place.left)) * SPAN_MS;
      pen.strokeStyle = colors["--quiet"];
      pen.beginPath();
      pen.moveTo(Math.round(this.hover) + 0.5, 4);
      pen.lineTo(Math.round(this.hover) + 0.5, place.bottom);
      pen.stroke();
    }
    const bins = this.options.bars ? this.bins() : null;
    for (const [key, line] of this.series) {
      line.swatch.style.color = line.swatch.style.borderColor = colors[line.color];
      let value = null;
      if (bins) value = at === null ? (line.points.at(-1)?.[1] ?? null) : (bins.get(Math.floor(at / 1000))?.get(key) ?? 0);
      else value = (at === null ? line.points.at(-1) : line.points.findLast(([time]) => time <= at))?.[1] ?? null;
      if (value === null) text(line.value, "–");
      else if (bins) text(line.value, at === null ? `${value} in all` : `${value} in this second`);
      else text(line.value, `${ms(value)} ${this.unit}`);
      if (at !== null && !bins && value !== null && place.y(value) <= place.bottom) {
        pen.fillStyle = colors[line.color];
        pen.beginPath();
        pen.arc(this.hover, place.y(value), 3, 0, 7);
        pen.fill();
      }
    }
  }
}

function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 8, 10].find((digit) => digit * power >= value - 1e-9) * power;
}

// As few characters as the margin has room for.
function short(value) {
  const size = Math.abs(value);
  const digits = size >= 1000 ? `${+(size / 1000).toPrecision(3)}k` : String(+size.toPrecision(3));
  return (value < 0 ? "−" : "") + digits;
}

function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of [...PALETTE, "--band", "--grid", "--line", "--quiet", "--bad", "--text"]) {
    colors[name] = style.getPropertyValue(name).trim();
  }
  dirty = true;
}

// Building the page, once a run is known.

function build() {
  plots.length = 0;
  views = {};
  models = {};
  text($("name"), config.name);
  document.title = `${config.name} · edgemm`;
  text($("clock"), config.clock === "wall" ? "" : "virtual clock");
  const videos = Object.keys(config.streams).filter((name) => config.streams[name].kind === "video");
  const sounds = Object.keys(config.streams).filter((name) => config.streams[name].kind === "audio");
  $("pictures").hidden = !videos.length;
  $("pictures").replaceChildren(...videos.map(buildPicture));
  const names = Object.keys(config.models);
  $("results").replaceChildren(...names.map((name) => buildModel(name, videos)));
  buildPlots(names, sounds, videos);
  $("books").replaceChildren(...["streams", "models", "sinks"].map(buildTable));
}

function buildPicture(name) {
  const pill = make("span", { class: "pill" });
  const canvas = make("canvas", { role: "img", "aria-label": `Picture of ${name}` });
  const drawn = make("div", { class: "drawn", hidden: "" });
  const figure = make("figure", { "data-stream": name }, canvas, make("div", { class: "badge" }, name, pill), drawn);
  views[name] = { figure, pill, canvas, drawn };
  return figure;
}

function buildModel(name, videos) {
  const numbers = {};
  const list = make("dl", { class: "numbers" });
  const entries = [
    ["results", "results", ""], ["step", "step", ""], ["time", "at", "s"], ["audio_age", "sound age", "ms"],
    ["video_age", "picture age", "ms"], ["skew", "skew", "ms"], ["latency", "latency", "ms"], ["late", "late", ""],
  ];
  for (const [key, label, unit] of entries) {
    const value = make("span", { "data-key": key }, "–");
    const cell = make("dd", {}, value, ...(unit ? [make("small", {}, unit)] : []));
    list.append(make("div", {}, make("dt", {}, label), cell));
    numbers[key] = { value, cell };
  }
  const engine = make("span", { class: "quiet" });
  const outputs = make("div", { class: "outputs" });
  const card = make("article", { class: "card", "data-model": name }, make("header", {}, make("h2", {}, name), engine), outputs, list);
  // Drawn on the picture that the model sees; on the first if it only listens.
  const home = config.models[name].find((stream) => videos.includes(stream)) ?? videos[0];
  models[name] = { numbers, engine, outputs, drawn: home ? views[home].drawn : null, shown: new Map() };
  return card;
}

function buildPlots(names, sounds, videos) {
  $("sound").hidden = !sounds.length;
  if (sounds.length) {
    const meters = sounds.map((name) => {
      const rms = make("i", { class: "rms" });
      const peak = make("i");
      const meter = make("div", { class: "meter", role: "meter", "aria-label": `Level of ${name}`, "aria-valuemin": FLOOR_DBFS, "aria-valuemax": 0 }, peak, rms);
      views[name] = { meter, rms, peak, pill: make("span", { class: "pill" }) };
      return meter;
    });
    const plot = new Plot($("sound"), "Sound level", "dBFS", { range: [FLOOR_DBFS, 0], above: meters });
    plot.note.append(...sounds.map((name) => views[name].pill));
    sounds.forEach((name, i) => {
      plot.add(`${name} peak`, sounds.length > 1 ? `${name} peak` : "peak", PALETTE[(2 * i + 1) % 6]);
      plot.add(`${name} rms`, sounds.length > 1 ? `${name} rms` : "rms", PALETTE[(2 * i) % 6]);
    });
    plots.sound = plot;
  }
  const ages = new Plot($("age"), "Age of what a result rests on", "ms", {
    atLeast: 20, lines: () => [[config.deadline_ms, "--bad"]],
  });
  text(ages.note, `deadline ${config.deadline_ms} ms`);
  const skew = new Plot($("skew"), "Skew: sound minus picture", "ms", {
    atLeast: config.tolerance_ms * 1.2, symmetric: true, bands: () => [[-config.tolerance_ms, config.tolerance_ms]],
  });
  text(skew.note, `in sync within ±${config.tolerance_ms} ms`);
  $("skew").hidden = !(sounds.length && videos.length);
  names.forEach((name, i) => {
    const label = names.length > 1 ? `${name} ` : "";
    const reads = config.models[name];
    // A model that reads only another one's outputs has the ages of what that one saw.
    if (!reads.length || reads.some((stream) => sounds.includes(stream))) ages.add(`${name} audio`, `${label}sound`, PALETTE[(2 * i) % 6]);
    if (!reads.length || reads.some((stream) => videos.includes(stream))) ages.add(`${name} video`, `${label}picture`, PALETTE[(2 * i + 1) % 6]);
    skew.add(name, names.length > 1 ? name : "skew", PALETTE[i % 6]);
  });
  const losses = new Plot($("losses"), "Lost, each second", "", { bars: true, atLeast: 4 });
  text(losses.note, "without what no step needed");
  losses.add("frames", "frames dropped", "--s1");
  losses.add("steps", "steps skipped", "--s2");
  Object.assign(plots, { ages, skew, losses });
}

const HEADS = {
  streams: ["stream", "state", "captured", "used", "in flight", "gaps", "drift ppm", "jitter ms", "reconnects", "dropped"],
  models: ["model", "due", "made", "pending", "late", "skipped"],
  sinks: ["sink", "taken", "written", "pending", "dropped"],
};

function buildTable(kind) {
  const body = make("tbody");
  const table = make("table", { id: `${kind}-table` }, make("thead", {}, make("tr", {}, ...HEADS[kind].map((head) => make("th", {}, head)))), body);
  const card = make("article", { class: "card", hidden: "" }, make("div", { class: "scroll" }, table));
  return card;
}

function fillTable(kind, rows) {
  const table = $(`${kind}-table`);
  if (!table) return;
  table.closest(".card").hidden = !rows.length;
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((row, r) => {
    const line = body.rows[r] ?? body.insertRow();
    row.forEach((value, c) => {
      const cell = line.cells[c] ?? line.insertCell();
      text(cell, String(value));
      if (c === row.length - 1) cell.className = "causes";
    });
    line.dataset.name = row[0];
  });
  // A column that no row fills, such as the drift of a file's clock, is left out.
  for (let c = 0; c < HEADS[kind].length && rows.length; c++) {
    const empty = rows.every((row) => row[c] === "");
    for (const line of table.rows) mark(line.cells[c], "empty", empty);
  }
}

// What comes.

function take(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const content = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  if (content.config) {
    config = content.config;
    pointsTaken = content.first_point;
    build();
  }
  setState(content.state, content.message);
  if (!config) return;
  nowMs = content.now_ms;
  text($("time"), `${(nowMs / 1000).toFixed(1)} s`);
  for (const [name, stream] of Object.entries(content.streams)) showStream(name, stream);
  for (const [name, model] of Object.entries(content.models)) showModel(name, model);
  // A page that connects between two messages is given some points twice.
  for (const point of content.points.slice(Math.max(0, pointsTaken - content.first_point))) takePoint(point);
  pointsTaken = content.first_point + content.points.length;
  showBooks(content);
  let offset = 4 + length;
  for (const picture of content.pictures) {
    showPicture(picture.stream, new Uint8Array(buffer, offset, picture.bytes));
    offset += picture.bytes;
  }
  dirty = true;
}

function setState(state, message) {
  mark($("state"), "state", state);
  mark(document.body, "state", state);
  text($("state"), state === "lost" ? "connection lost" : state === "running" && !config ? "starting" : state);
  text($("note"), message);
}

function showStream(name, stream) {
  const view = views[name];
  if (!view) return;
  mark(view.pill, "state", stream.state);
  text(view.pill, stream.state);
  if (view.figure) mark(view.figure, "state", stream.state);
}

async function showPicture(name, bytes) {
  const view = views[name];
  if (!view) return;
  const number = (view.asked = (view.asked ?? 0) + 1);
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
  if (number >= (view.drawnNumber ?? 0)) {
    view.drawnNumber = number;
    if (view.canvas.width !== bitmap.width || view.canvas.height !== bitmap.height) {
      view.canvas.width = bitmap.width;
      view.canvas.height = bitmap.height;
      view.canvas.style.aspectRatio = `${bitmap.width} / ${bitmap.height}`;
    }
    view.canvas.getContext("2d").drawImage(bitmap, 0, 0);
    view.canvas.dataset.pictures = number;
  }
  bitmap.close();
}

function showModel(name, model) {
  const view = models[name];
  if (!view) return;
  const { numbers } = view;
  text(numbers.results.value, String(model.results));
  if (model.account) {
    text(numbers.late.value, String(model.account.deadlines_missed));
    mark(numbers.late.cell, "tone", model.account.deadlines_missed ? "bad" : "");
  }
  const newest = model.newest;
  if (!newest) return;
  text(view.engine, newest.fallback ? `${newest.engine}: ${newest.fallback}` : newest.engine);
  text(numbers.step.value, String(newest.step));
  text(numbers.time.value, (newest.time_ms / 1000).toFixed(3));
  text(numbers.audio_age.value, ms(newest.audio_age_ms));
  text(numbers.video_age.value, ms(newest.video_age_ms));
  text(numbers.skew.value, ms(newest.skew_ms));
  mark(numbers.skew.cell, "tone", newest.in_sync === false ? "bad" : "");
  text(numbers.latency.value, ms(newest.latency_ms?.total));
  for (const [output, value] of Object.entries(newest.outputs)) showOutput(name, view, output, value);
}

function showOutput(model, view, output, value) {
  let shown = view.shown.get(output);
  if (!shown) {
    const label = Object.keys(models).length > 1 ? `${model} · ${output}` : output;
    const place = view.drawn ?? view.outputs;
    const big = make("b", { "data-key": "value" });
    const small = make("span", { "data-key": "score" });
    const fill = make("i");
    const bar = make("div", { class: "bar" }, fill);
    const value = make("div", { class: "value" }, big, small);
    const box = make("div", { class: "output", "data-output": output, "data-of": model }, make("div", { class: "what" }, label), value, bar);
    place.hidden = false;
    place.append(box);
    shown = { big, small, fill, bar, box };
    view.shown.set(output, shown);
  }
  const [words, beside, score] = describe(value);
  text(shown.big, words);
  text(shown.small, beside);
  shown.bar.style.visibility = score === null ? "hidden" : "";
  shown.fill.style.width = `${Math.max(0, Math.min(1, score ?? 0)) * 100}%`;
  mark(shown.box, "above", value.above ?? true);
}

function describe(value) {
  if (value.kind === "label") {
    const likely = value.score >= 0 && value.score <= 1;
    return [value.label, likely ? percent(value.score) : value.score.toPrecision(4), likely ? value.score : null];
  }
  if (value.kind === "score") return [value.above ? "yes" : "no", percent(value.score), value.score];
  if (value.kind === "vector") return [value.norm.toFixed(3), `norm of ${value.size}`, null];
  const numbers = value.values.map((number) => (number === null ? "nan" : String(+number.toPrecision(4))));
  const count = value.shape.reduce((a, b) => a * b, 1);
  return [numbers.join(" ") + (count > numbers.length ? " …" : ""), `[${value.shape.join(", ")}]`, null];
}

function takePoint([kind, time, ...values]) {
  if (kind === "result") {
    const [model, audio, video, skew] = values;
    plots.ages.push(`${model} audio`, time, audio);
    plots.ages.push(`${model} video`, time, video);
    plots.skew.push(model, time, skew);
  } else if (kind === "lost") {
    plots.losses.push("frames", time, values[0]);
    plots.losses.push("steps", time, values[1]);
  } else if (plots.sound) {
    const [stream, peak, rms] = values;
    plots.sound.push(`${stream} peak`, time, peak);
    plots.sound.push(`${stream} rms`, time, rms);
    const view = views[stream];
    const share = (value) => Math.max(0, 1 - value / FLOOR_DBFS);
    view.peak.style.transform = `scaleX(${share(peak)})`;
    view.rms.style.transform = `scaleX(${share(rms)})`;
    view.meter.setAttribute("aria-valuenow", peak.toFixed(0));
    mark(view.meter, "hot", peak > -0.1);
  }
}

function showBooks(content) {
  const streams = Object.entries(content.streams).filter(([, stream]) => stream.account);
  fillTable("streams", streams.map(([name, { state, account, clock }]) => [
    name, state, account.captured, account.used, account.in_flight, account.discontinuities,
    ...(clock ? [clock.drift_ppm?.toFixed(1) ?? "–", clock.jitter_ms.toFixed(2), clock.reconnects] : ["", "", ""]), causes(account.dropped),
  ]));
  const made = Object.entries(content.models).filter(([, model]) => model.account);
  fillTable("models", made.map(([name, { account }]) => [
    name, account.due, account.made, account.pending, account.deadlines_missed, causes(account.skipped),
  ]));
  fillTable("sinks", Object.entries(content.sinks).map(([name, account]) => [
    name, account.taken, account.written, account.pending, causes(account.dropped),
  ]));
}

// The connection.

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/${location.search}`);
  socket.binaryType = "arraybuffer";
  socket.addEventListener("open", () => {
    retries = 0;
  });
  socket.addEventListener("message", (event) => take(event.data));
  socket.addEventListener("close", () => {
    // A run that has ended stays on the page; its next one takes its place.
    if (!["ended", "failed"].includes(document.body.dataset.state)) setState("lost", "trying again");
    setTimeout(connect, RETRY_MS[Math.min(retries++, RETRY_MS.length - 1)]);
  });
}

function paint() {
  if (dirty) {
    dirty = false;
    for (const plot of plots) if (plot.box.offsetParent) plot.draw();
  }
  requestAnimationFrame(paint);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColors);
addEventListener("resize", () => {
  dirty = true;
});
readColors();
connect();
requestAnimationFrame(paint);
