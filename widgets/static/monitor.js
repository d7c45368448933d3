// Curves of one or several runs. Rows come from the kernel already thinned; smoothing, axes and zoom are done here.

const PLACES = ["step", "time", "tokens"];
const SMALL = [
  { name: "lr" }, { name: "grad_norm", log: true }, { name: "tokens_per_second", zero: true }, { name: "memory_mb", zero: true },
  { name: "loss_scale", log: true, marks: "overflow" }, { name: "aux_loss" }, { name: "drop_rate", zero: true },
];

function numbers(name, view) {
  const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  return PLACES.includes(name) ? new Float64Array(bytes) : new Float32Array(bytes);
}

class Runs {
  constructor() { this.list = []; }

  replace(data) {
    this.list = (data || []).map((run) => {
      const columns = {};
      for (const [name, view] of Object.entries(run.columns)) columns[name] = numbers(name, view);
      return { name: run.name, version: String(run.version), columns, scale: run.scale ?? 1, evals: run.evals, marks: run.marks };
    });
  }

  // Rows from number `first` on are new; false when they do not fit what is here.
  patch(message, buffers) {
    const run = this.list[message.run];
    const here = run && run.columns.step ? run.columns.step.length : 0;
    if (!run || run.version !== String(message.version) || here < message.first) return false;
    const parts = {};
    message.names.forEach((name, index) => { parts[name] = numbers(name, buffers[index]); });
    const rows = message.first + (parts.step ? parts.step.length : 0);
    for (const name of new Set([...Object.keys(run.columns), ...message.names])) {
      const wide = name === "expert_load" ? Math.max(1, (parts[name] || run.columns[name]).length / ((parts[name] ? parts.step : run.columns.step).length || 1)) : 1;
      const kind = PLACES.includes(name) ? Float64Array : Float32Array;
      const column = new kind(rows * wide).fill(NaN);
      if (run.columns[name]) column.set(run.columns[name].subarray(0, message.first * wide));
      if (parts[name]) column.set(parts[name], message.first * wide);
      run.columns[name] = column;
    }
    run.evals = message.evals;
    run.marks = message.marks;
    return true;
  }
}

// Seconds spent at work: what lies between an end and its resumption does not count.
function workClock(run) {
  const gaps = [];
  const times = run.columns.time || [];
  for (const mark of run.marks.filter((item) => item.kind === "resume" && item.time)) {
    let before = NaN;
    for (let row = times.length - 1; row >= 0; row -= 1) if (times[row] < mark.time) { before = times[row]; break; }
    if (mark.time > before) gaps.push([mark.time, mark.time - before]);
  }
  const begin = Math.min(times.length ? times[0] : Infinity, ...run.evals.map((item) => item.time));
  return (time) => time - begin - gaps.reduce((sum, [when, length]) => sum + (time >= when ? length : 0), 0);
}

function places(run, axis) {
  const column = run.columns[axis] || new Float64Array(0);
  if (axis !== "time") return [column, (item) => item[axis] ?? NaN];
  const at = workClock(run);
  return [Float64Array.from(column, at), (item) => at(item.time)];
}

// A loss in the unit that the runs are drawn in.
function scaled(run, values) { return values && run.scale !== 1 ? values.map((value) => value * run.scale) : values; }

// As `smoothed` in pangu_lab/runs/curves.py: at step t the weight is at most 1 - 10 / t.
function smooth(values, counts, weight) {
  let [average, total, steps] = [0, 0, 0];
  return Float32Array.from(values, (value, row) => {
    if (Number.isFinite(value)) {
      steps += counts[row] || 1;
      const kept = Math.min(weight, Math.max(0, 1 - 10 / steps)) ** (counts[row] || 1);
      average = kept * average + (1 - kept) * value;
      total = kept * total + (1 - kept);
    }
    return total > 0 ? average / total : NaN;
  });
}

// ------------------------------------------------------------------------------------------------ one chart

function limits(series, view, log, zero) {
  let [low, high] = [Infinity, -Infinity];
  for (const { x, y, low: lower, high: upper } of series) {
    for (let row = 0; row < x.length; row += 1) {
      if (view && (x[row] < view[0] || x[row] > view[1])) continue;
      for (const value of [y[row], lower ? lower[row] : NaN, upper ? upper[row] : NaN]) {
        if (!Number.isFinite(value) || (log && value <= 0)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
  }
  if (low > high) return null;
  if (zero) low = Math.min(0, low);
  if (log) {
    const margin = Math.max((high / low) ** 0.06, 1.02);
    return [low / margin, high * margin];
  }
  const margin = (high - low) * 0.07 || Math.abs(high) * 0.1 || 0.5;
  return [zero && low === 0 ? 0 : low - margin, high + margin];
}

function drawChart(canvas, height, options) {
  const [context, width] = pen(canvas, height);
  const node = canvas.closest(".pgl");
  const [line, muted, back] = [style(node, "--pgl-line"), style(node, "--pgl-muted"), style(node, "--pgl-bg")];
  const { series, across, log, format } = options;
  const range = limits(series, across, log, options.zero);
  if (!range) return null;
  const box = { left: 50, right: width - 10, top: 8, bottom: height - 24 };
  const bend = log ? Math.log : (value) => value;
  const toX = (value) => box.left + ((value - across[0]) / (across[1] - across[0] || 1)) * (box.right - box.left);
  const toY = (value) => box.bottom - ((bend(value) - bend(range[0])) / (bend(range[1]) - bend(range[0]))) * (box.bottom - box.top);
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const value of (log ? logTicks : ticks)(range[0], range[1], Math.max(2, Math.floor(height / 48)))) {
    const y = toY(value);
    if (y < box.top - 1 || y > box.bottom + 1) continue;
    context.fillStyle = line;
    context.fillRect(box.left, Math.round(y), box.right - box.left, 1);
    context.fillStyle = muted;
    context.fillText(compact(value), box.left - 7, y);
  }
  context.textAlign = "center";
  for (const value of ticks(across[0], across[1], Math.max(2, Math.floor(width / 95)))) {
    context.fillStyle = muted;
    context.fillText(format(value), Math.min(toX(value), box.right - 10), height - 9);
  }
  context.save();
  context.beginPath();
  context.rect(box.left - 4, box.top - 4, box.right - box.left + 8, box.bottom - box.top + 8);
  context.clip();
  for (const mark of options.marks || []) {
    context.fillStyle = mark.color;
    context.fillRect(Math.round(toX(mark.x)), mark.short ? box.bottom - 9 : box.top, 1, mark.short ? 9 : box.bottom - box.top);
  }
  for (const item of series) drawSeries(context, item, toX, toY, back, log);
  context.restore();
  return { box, toX, toY, context, fromX: (pixel) => across[0] + ((pixel - box.left) / (box.right - box.left)) * (across[1] - across[0]) };
}

function drawSeries(context, { x, y, low, high, color, thick, pale, dots }, toX, toY, back, log) {
  const shown = (value) => Number.isFinite(value) && !(log && value <= 0);
  context.strokeStyle = context.fillStyle = color;
  context.globalAlpha = pale ? 0.32 : 1;
  context.lineWidth = thick ? 2 : 1.2;
  context.lineJoin = "round";
  if (low && high) {
    context.globalAlpha = 0.16;
    context.beginPath();
    for (let row = 0; row < x.length; row += 1) if (shown(high[row])) context.lineTo(toX(x[row]), toY(high[row]));
    for (let row = x.length - 1; row >= 0; row -= 1) if (shown(low[row])) context.lineTo(toX(x[row]), toY(low[row]));
    context.fill();
    context.globalAlpha = pale ? 0.32 : 1;
  }
  context.beginPath();
  let gap = true;
  for (let row = 0; row < x.length; row += 1) {
    if (!shown(y[row])) { gap = true; continue; }
    if (gap) context.moveTo(toX(x[row]), toY(y[row])); else context.lineTo(toX(x[row]), toY(y[row]));
    gap = false;
  }
  if (dots) context.setLineDash([4, 4]);
  context.stroke();
  context.setLineDash([]);
  context.globalAlpha = 1;
  if (dots || x.length === 1) {
    for (let row = 0; row < x.length; row += 1) {
      if (!shown(y[row])) continue;
      context.beginPath();
      context.arc(toX(x[row]), toY(y[row]), 3.6, 0, 7);
      context.fillStyle = back;
      context.fill();
      context.lineWidth = 2;
      context.stroke();
    }
  }
}

// Each expert's share of the tokens, in percent.
function loadsAt(run, row) {
  const experts = Math.round(run.columns.expert_load.length / run.columns.step.length);
  const loads = [...run.columns.expert_load.subarray(row * experts, (row + 1) * experts)];
  const total = loads.reduce((sum, value) => sum + value, 0);
  return loads.map((value) => (total > 0 ? `${Math.round((100 * value) / total)}%` : "–"));
}

// Rows across, experts upwards; the even share is pale, an overloaded expert strong.
function drawLoad(canvas, height, run, format, across, x) {
  const [context, width] = pen(canvas, height);
  const node = canvas.closest(".pgl");
  const loads = run.columns.expert_load;
  const experts = Math.round(loads.length / run.columns.step.length);
  const box = { left: 50, right: width - 10, top: 6, bottom: height - 24 };
  const span = across[1] - across[0] || 1;
  const at = (value) => box.left + ((value - across[0]) / span) * (box.right - box.left);
  context.globalAlpha = 1;
  for (let row = 0; row < x.length; row += 1) {
    const share = loads.subarray(row * experts, (row + 1) * experts);
    const total = share.reduce((sum, value) => sum + (Number.isFinite(value) ? value : 0), 0);
    const [from, to] = [at(row ? x[row - 1] : across[0]), at(x[row])];
    if (to < box.left || from > box.right) continue;
    for (let expert = 0; expert < experts; expert += 1) {
      if (!Number.isFinite(share[expert]) || !total) continue;
      const tall = (box.bottom - box.top) / experts;
      context.fillStyle = paintOf(node, 0);
      context.globalAlpha = Math.min(1, 0.06 + 0.42 * (share[expert] / total) * experts);
      context.fillRect(Math.max(box.left, from), box.top + expert * tall, Math.max(1, to - Math.max(box.left, from)) + 0.5, Math.max(1, tall - (tall > 4 ? 1 : 0)));
    }
  }
  context.globalAlpha = 1;
  context.fillStyle = style(node, "--pgl-muted");
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "right";
  context.fillText("0", box.left - 7, box.top + 9);
  context.fillText(String(experts - 1), box.left - 7, box.bottom);
  context.textAlign = "center";
  for (const value of ticks(across[0], across[1], Math.max(2, Math.floor(width / 95)))) {
    context.fillText(format(value), at(value), height - 7);
  }
  return { box, context, toX: at, fromX: (place) => across[0] + ((place - box.left) / (box.right - box.left)) * span };
}

// ---------------------------------------------------------------------------------------------- the widget

const KINDS = { finished: "good", failed: "bad", died: "bad", stopped: "still", none: "still" };

class Monitor {
  constructor(model, node) {
    this.model = model;
    this.node = root(node, "monitor");
    this.runs = new Runs();
    this.runs.replace(model.get("data"));
    this.zoom = null;
    this.pointer = null;
    this.asked = "";
    this.painters = [];
    this.skew = 0;
    this.listeners = [
      ["change:data", () => { this.runs.replace(model.get("data")); this.draw(); }],
      ["change:heads", () => this.showHead()], ["change:others", () => this.showOthers()],
      ["change:samples", () => this.showSamples()], ["change:ranks", () => this.showRanks()], ["change:log_view", () => this.showLog()],
      ["change:axis change:log change:smoothing", () => { this.showControls(); this.draw(); }],
      ["msg:custom", (message, buffers) => this.receive(message, buffers)],
    ];
    for (const [names, call] of this.listeners) model.on(names, call);
    this.unbuild = whenLanguageChanges(model, () => this.build());
    this.timer = setInterval(() => this.showTimes(), 1000);
    model.send({ do: "hello" });
  }

  close() {
    for (const [names, call] of this.listeners) this.model.off(names, call);
    this.unbuild();
    clearInterval(this.timer);
    this.painters.forEach((item) => item.stop());
  }

  set(name, value) { this.model.set(name, value); this.model.save_changes(); }

  receive(message, buffers) {
    if (message.kind === "tail") {
      if (this.runs.patch(message, buffers)) this.draw();
      else if (Date.now() - (this.lastHello || 0) > 5000) { this.lastHello = Date.now(); this.model.send({ do: "hello" }); }
    } else if (message.kind === "file") {
      download(message.name, new Blob(["\ufeff", message.text], { type: "text/csv" }));
    } else if (message.kind === "refused") {
      this.asked = "";
      this.refusal.textContent = message.text;
      this.refusal.hidden = false;
    }
  }

  build() {
    const t = wordsOf(this.model, "monitor");
    this.t = t;
    this.painters.forEach((item) => item.stop());
    this.painters = [];
    this.badge = el("span", { class: "pgl-badge" });
    this.title = el("span", { class: "pgl-title" });
    this.progress = el("span", { class: "pgl-muted", "aria-live": "off" });
    this.stop = el("button", { class: "pgl-danger", type: "button", onclick: () => this.ask("stop") }, t("stop"));
    this.resume = el("button", { type: "button", onclick: () => this.ask("resume") }, t("resume"));
    this.fillBar = el("div");
    this.bar = el("div", { class: "pgl-bar" }, this.fillBar);
    this.refusal = el("div", { class: "pgl-error", hidden: true, role: "alert" });
    this.trouble = el("div", { hidden: true, style: "margin-bottom:10px" });
    this.warning = el("div", { hidden: true, class: "pgl-muted", style: "margin-bottom:10px", "data-name": "warning" });
    this.tiles = el("div", { class: "pgl-tiles" });
    this.chart = this.makeChart(270);
    this.small = el("div", { class: "pgl-small" });
    this.smallCharts = new Map();
    this.legend = el("div", { class: "pgl-charttitle" });
    this.waiting = el("div", { class: "pgl-empty" });
    this.tip = el("div", { class: "pgl-tip", hidden: true });
    this.chart.frame.append(this.tip);
    fill(this.node,
      el("div", { class: "pgl-row" }, this.badge, this.title, this.progress, el("span", { class: "pgl-row pgl-push" }, this.stop, this.resume, languageSwitch(this.model))),
      this.bar, this.refusal, this.trouble, this.warning, this.tiles, this.controls(), this.legend, this.waiting, this.chart.frame, this.small, this.samples(), this.rankLines(), this.logs());
    this.showControls();
    this.showOthers();
    this.showHead();
    this.showRanks();
    this.showLog();
    this.draw();
  }

  ask(what) {
    this.asked = what;
    this.refusal.hidden = true;
    this.model.send({ do: what });
    this.showHead();
    setTimeout(() => { if (this.asked === "resume") { this.asked = ""; this.showHead(); } }, 8000);
  }

  controls() {
    const t = this.t;
    this.axes = PLACES.map((axis) => el("button", { type: "button", onclick: () => { this.zoom = null; this.set("axis", axis); } }, t(`axis_${axis}`)));
    this.logBox = el("input", { type: "checkbox", onchange: () => this.set("log", this.logBox.checked) });
    this.slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, style: "width:92px", "aria-label": t("smoothing"),
      oninput: () => this.set("smoothing", Number(this.slider.value)) });
    this.sliderValue = el("span", { style: "min-width:2.2em" });
    this.menu = el("div", { hidden: true });
    this.compare = el("button", { type: "button", "aria-haspopup": "true", onclick: () => { this.menu.hidden = !this.menu.hidden; } }, t("compare"));
    this.unzoom = el("button", { type: "button", class: "pgl-quiet", hidden: true, onclick: () => { this.zoom = null; this.draw(); } }, t("whole"));
    return el("div", { class: "pgl-row", style: "margin-bottom:6px" },
      el("span", { class: "pgl-choice", role: "group" }, this.axes),
      el("label", { class: "pgl-label" }, this.logBox, t("log")),
      el("label", { class: "pgl-label" }, t("smoothing"), this.slider, this.sliderValue), this.unzoom,
      el("span", { class: "pgl-row pgl-push", style: "gap:6px" }, el("span", { class: "pgl-menu" }, this.compare, this.menu),
        el("button", { type: "button", onclick: () => this.model.send({ do: "csv" }) }, "CSV"),
        el("button", { type: "button", onclick: () => this.savePicture() }, "PNG")));
  }

  showControls() {
    const axis = this.model.get("axis");
    this.axes.forEach((button, index) => button.setAttribute("aria-pressed", String(PLACES[index] === axis)));
    this.logBox.checked = this.model.get("log");
    this.slider.value = this.model.get("smoothing");
    this.sliderValue.textContent = this.model.get("smoothing").toFixed(2);
  }

  showOthers() {
    const shown = new Set(this.runs.list.map((run) => run.name));
    const first = (this.model.get("heads")[0] || {}).name;
    const names = this.model.get("others").filter((name) => name !== first);
    this.compare.disabled = names.length === 0;
    fill(this.menu, names.map((name) => {
      const box = el("input", { type: "checkbox", checked: shown.has(name), onchange: () => {
        const chosen = [...this.menu.querySelectorAll("input:checked")].map((item) => item.value);
        this.model.send({ do: "compare", names: chosen });
      } });
      box.value = name;
      return el("label", {}, box, name);
    }));
  }

  logs() {
    this.logChoice = el("select", { style: "width:auto", onchange: () => this.model.send({ do: "log", name: this.logChoice.value }) });
    this.logText = el("pre", { tabindex: 0 });
    this.logBoxes = el("details", { style: "margin-top:10px", ontoggle: () => {
      if (this.logBoxes.open) this.model.send({ do: "log", name: this.logChoice.value });
      else this.model.send({ do: "log", name: "" });
    } }, el("summary", {}, this.t("logs")), el("div", { class: "pgl-row" }, this.logChoice), this.logText);
    return this.logBoxes;
  }

  showLog() {
    const view = this.model.get("log_view");
    if (view.name) this.logChoice.value = view.name;
    const low = this.logText.scrollHeight - this.logText.scrollTop - this.logText.clientHeight < 30;
    this.logText.textContent = (view.lines || []).join("\n") || this.t("log_empty");
    if (low) this.logText.scrollTop = this.logText.scrollHeight;
  }

  // -------------------------------------------------------------------------------- words and figures

  showHead() {
    const heads = this.model.get("heads");
    const head = heads[0];
    if (!head) return;
    const t = this.t;
    this.skew = head.now - Date.now() / 1000;
    if (head.ended && this.asked === "stop") this.asked = "";
    if (!head.ended && this.asked === "resume") this.asked = "";
    const kind = KINDS[head.state] || "live";
    this.badge.dataset.kind = kind;
    this.badge.dataset.state = head.state;
    this.badge.textContent = this.asked === "stop" && !head.ended ? t("stopping") : t(`state_${head.state}`);
    this.title.textContent = head.name;
    this.title.title = head.folder;
    this.stop.hidden = head.ended;
    this.stop.disabled = this.asked === "stop";
    this.resume.hidden = !head.ended || head.state === "none" || (head.state === "finished" && head.step >= head.steps);
    this.resume.disabled = this.asked === "resume";
    this.bar.dataset.kind = kind === "live" ? "" : kind;
    const busy = ["starting", "compiling", "saving"].includes(head.state) && !head.step;
    this.bar.toggleAttribute("data-busy", busy);
    this.fillBar.style.width = `${head.steps ? Math.min(100, (100 * head.step) / head.steps) : 0}%`;
    this.showTrouble(head);
    this.showSamples();
    this.warning.hidden = !head.warning;
    this.warning.textContent = head.warning ? `⚠ ${head.warning}` : "";
    this.showTiles(head);
    this.showTimes();
    const chosen = this.logChoice.value;
    if ([...this.logChoice.options].map((item) => item.value).join() !== head.logs.join()) {
      fill(this.logChoice, head.logs.map((name) => el("option", { value: name }, name.replace("rank_", `${t("rank")} `))));
      if (head.logs.includes(chosen)) this.logChoice.value = chosen;
    }
    this.showOthersNames(heads);
  }

  // What the model wrote at its evaluations: a slider by step. The texts are a model's, and only ever set as text.
  samples() {
    this.sampleSlider = el("input", { type: "range", min: 0, step: 1, "aria-label": this.t("samples"), oninput: () => { this.sampleAt = Number(this.sampleSlider.value); this.showSamples(); } });
    this.sampleStep = el("span", { class: "pgl-muted" });
    this.sampleTexts = el("div", { "data-name": "samples" });
    this.sampleBox = el("div", { hidden: true, style: "margin-top:10px" }, el("div", { class: "pgl-charttitle" }, this.t("samples"), " ", this.sampleSlider, " ", this.sampleStep), this.sampleTexts);
    return this.sampleBox;
  }

  showSamples() {
    if (!this.sampleBox) return;
    const samples = this.model.get("samples") || [];
    const steps = [...new Set(samples.map((one) => one.step))];
    this.sampleBox.hidden = !steps.length;
    if (!steps.length) return;
    const row = Math.min(this.sampleAt ?? steps.length - 1, steps.length - 1);
    if (row === steps.length - 1) this.sampleAt = undefined; // stays with the newest
    this.sampleSlider.max = String(steps.length - 1);
    this.sampleSlider.value = String(row);
    this.sampleStep.textContent = this.t("sample_step", { step: steps[row].toLocaleString("en-US") });
    fill(this.sampleTexts, samples.filter((one) => one.step === steps[row]).map((one) => el("div", { style: "white-space:pre-wrap;margin:4px 0" }, el("b", {}, one.prompt), one.text)));
  }

  // Every rank, on whichever host, a line.
  rankLines() {
    this.rankTable = el("table", { class: "pgl-table" });
    this.rankBox = el("details", { open: true, style: "margin-top:10px", "data-name": "ranks" }, el("summary", {}, this.t("ranks")), el("div", { class: "pgl-scroll" }, this.rankTable));
    return this.rankBox;
  }

  showRanks() {
    const [ranks, t] = [this.model.get("ranks"), this.t];
    this.rankBox.hidden = !ranks.length;
    const troubled = (one) => ["failed", "refused", "gone", "silent"].includes(one.state);
    fill(this.rankTable, el("tr", {}, ["rank", "host", "state", "axis_step", "heard"].map((key) => el("th", {}, t(key)))), ranks.map((one) => el("tr", { "data-rank": String(one.rank) },
      el("td", {}, String(one.rank)), el("td", { title: `pid ${one.pid}` }, one.host), el("td", { class: troubled(one) && "pgl-bad", title: one.note }, t(`rank_${one.state}`)),
      el("td", {}, one.step.toLocaleString("en-US")), el("td", {}, one.state === "done" ? "" : t("ago", { time: clock(one.age) })))));
  }

  showOthersNames(heads) {
    const shown = heads.map((head) => head.name).join("\n");
    if (shown !== this.shownNames) { this.shownNames = shown; this.showOthers(); }
  }

  showTrouble(head) {
    const bad = head.state === "failed" || head.state === "died";
    this.trouble.hidden = !bad;
    if (!bad) return;
    const reason = head.state === "died" ? this.t("died_at", { step: head.step.toLocaleString("en-US") }) : head.reason;
    const more = head.lines.length ? el("pre", {}, head.lines.join("\n")) : null;
    const key = JSON.stringify([reason, head.lines, this.model.get("language")]);
    if (this.troubleShown !== key) fill(this.trouble, el("div", { class: "pgl-error" }, reason, more));
    this.troubleShown = key;
  }

  showTiles(head) {
    const t = this.t;
    const last = head.last;
    const tiles = [["loss", short(last.loss)]];
    if (head.evaluation) tiles.push(["perplexity", short(head.evaluation.perplexity)]);
    if (head.evaluation && Number.isFinite(head.evaluation.bits_per_character)) tiles.push(["bits_per_character", short(head.evaluation.bits_per_character)]);
    tiles.push(["lr", short(last.lr, 3)], ["grad_norm", short(last.grad_norm, 3)], ["tokens_per_second", short(last.tokens_per_second)]);
    tiles.push(["memory", last.memory_mb === null ? "–" : last.memory_mb < 10000 ? `${short(last.memory_mb)} MB` : `${short(last.memory_mb / 1024, 3)} GB`]);
    if (head.scaled) tiles.push(["loss_scale", last.loss_scale ? `2^${short(Math.log2(last.loss_scale), 3)}` : "–"], ["overflows", String(head.overflows)]);
    const { records, of_records: whole } = head.evaluation || {};
    const on = records && whole && records < whole ? t("of_records", { part: records.toLocaleString("en-US"), whole: whole.toLocaleString("en-US") }) : "";
    const hint = (name) => (on && ["perplexity", "bits_per_character"].includes(name) ? `${t(name)}: ${on}` : t(name));
    fill(this.tiles, tiles.map(([name, value]) => el("div", { class: "pgl-tile", "data-name": name }, el("div", { title: hint(name) }, t(name)), el("div", {}, value))));
  }

  // What moves with the clock alone: elapsed compile time and the time left.
  showTimes() {
    const head = this.model.get("heads")[0];
    if (!head || !this.progress) return;
    const t = this.t;
    const now = Date.now() / 1000 + this.skew;
    const parts = [];
    if (head.steps) parts.push(t("step_of", { step: head.step.toLocaleString("en-US"), steps: head.steps.toLocaleString("en-US") }));
    for (const [key, value] of Object.entries(head.seen || {})) if (Number.isFinite(value)) parts.push(t(key, { number: short(value, 3) }));
    if (head.state === "compiling") parts.push(t("compiling_for", { time: clock(now - head.since) }));
    else if (head.compile_seconds && head.step < 50 && !head.ended) parts.push(t("compiled_in", { time: short(head.compile_seconds, 2) }));
    if (head.left !== null) parts.push(t("left", { time: clock(head.left - (now - head.now)) }));
    if (head.ended && head.reason && head.state === "stopped") parts.push(t(`reason_${head.reason.replace(/ /g, "_")}`).replace(/^reason_.*/, head.reason));
    const facts = head.facts || {};
    if (facts.parameters) parts.push(`${compact(facts.parameters)} ${t("parameters")}`);
    const { records, of_records: whole } = head.evaluation || {};
    if (records && whole && records < whole) parts.push(t("of_records", { part: records.toLocaleString("en-US"), whole: whole.toLocaleString("en-US") }));
    if (facts.processes > 1) parts.push(t("processes", { number: facts.processes }));
    this.progress.textContent = parts.join("  ·  ");
  }

  // ---------------------------------------------------------------------------------------- the curves

  makeChart(height) {
    const canvas = el("canvas", { tabindex: 0 });
    const frame = el("div", { class: "pgl-chart" }, canvas);
    const chart = { canvas, frame, height, scale: null };
    const paint = painter(canvas, () => this.paint());
    this.painters.push(paint);
    canvas.addEventListener("pointermove", (event) => this.point(chart, event));
    canvas.addEventListener("pointerleave", () => { if (!this.drag) { this.pointer = null; this.draw(); } });
    canvas.addEventListener("pointerdown", (event) => { if (chart.scale && event.button === 0) this.drag = chart.scale.fromX(event.offsetX); });
    canvas.addEventListener("pointerup", (event) => this.endDrag(chart, event));
    canvas.addEventListener("dblclick", () => { this.zoom = null; this.draw(); });
    canvas.addEventListener("keydown", (event) => this.key(event));
    return chart;
  }

  point(chart, event) {
    if (!chart.scale) return;
    this.pointer = chart.scale.fromX(event.offsetX);
    this.draw();
  }

  endDrag(chart, event) {
    if (this.drag === undefined || !chart.scale) return;
    const [from, to] = [this.drag, chart.scale.fromX(event.offsetX)].sort((a, b) => a - b);
    this.drag = undefined;
    if (chart.scale.toX(to) - chart.scale.toX(from) > 8) this.zoom = [from, to];
    this.draw();
  }

  key(event) {
    const x = this.shown && this.shown[0] && this.shown[0].x;
    if (!x || !x.length || !["ArrowLeft", "ArrowRight", "Escape"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Escape") { this.pointer = null; this.zoom = null; this.draw(); return; }
    const here = this.pointer === null ? x.length - 1 : nearest(x, this.pointer);
    const row = Math.max(0, Math.min(x.length - 1, here + (event.key === "ArrowLeft" ? -1 : 1)));
    this.pointer = x[row];
    this.draw();
  }

  draw() { this.painters.forEach((item) => item.ask()); }

  paint() {
    if (this.painted) return; // all charts are painted together, once a frame
    this.painted = true;
    queueMicrotask(() => { this.painted = false; });
    const axis = this.model.get("axis");
    this.shown = this.runs.list.map((run, number) => {
      const [x, placeOf] = places(run, axis);
      const loss = scaled(run, run.columns.loss) || new Float32Array(x.length).fill(NaN);
      return { run, x, placeOf, color: paintOf(this.node, number), loss, smoothed: smooth(loss, run.columns.count || [], this.model.get("smoothing")) };
    });
    const ends = this.shown.flatMap(({ x, run, placeOf }) => [x.length ? x[x.length - 1] : 0, ...run.evals.map(placeOf)]).filter(Number.isFinite);
    const nothing = !this.shown.some(({ x, run }) => x.length || run.evals.length);
    this.waiting.hidden = !nothing;
    this.chart.frame.hidden = nothing;
    this.legend.hidden = nothing;
    const head = this.model.get("heads")[0] || {};
    this.waiting.textContent = this.t(head.ended ? (head.state === "none" ? "no_run" : "no_points") : "no_points_yet");
    this.unzoom.hidden = !this.zoom;
    if (nothing) { this.small.replaceChildren(); this.smallCharts.clear(); return; }
    const across = this.zoom || [0, Math.max(1e-9, ...ends)];
    const format = axis === "time" ? clock : compact;
    this.paintLoss(across, format);
    this.paintSmall(across, format);
    this.showLegend();
    this.showTip();
  }

  marksOf({ run, placeOf }, kind, color, shortMark) {
    const counted = run.marks.filter((mark) => mark.kind === kind);
    if (this.model.get("axis") === "tokens") {
      const [steps, tokens] = [run.columns.step || [], run.columns.tokens || []];
      return counted.map((mark) => ({ x: tokens[nearest(steps, mark.step)] ?? 0, color, short: shortMark }));
    }
    return counted.map((mark) => ({ x: placeOf(mark), color, short: shortMark }));
  }

  paintLoss(across, format) {
    const series = [];
    const marks = [];
    for (const item of this.shown) {
      const { run, x, color, loss, smoothed, placeOf } = item;
      if (x.length) {
        series.push({ x, y: loss, low: scaled(run, run.columns["loss.low"]), high: scaled(run, run.columns["loss.high"]), color, pale: this.model.get("smoothing") > 0 });
        if (this.model.get("smoothing") > 0) series.push({ x, y: smoothed, color, thick: true });
      }
      if (run.evals.length) series.push({ x: run.evals.map(placeOf), y: run.evals.map((one) => (this.model.get("unit") === "bits" ? one.bits_per_character : one.loss) ?? NaN), color, dots: true });
      marks.push(...this.marksOf(item, "resume", style(this.node, "--pgl-muted")), ...this.marksOf(item, "overflow", style(this.node, "--pgl-bad"), true));
    }
    this.chart.scale = drawChart(this.chart.canvas, this.chart.height, { series, marks, across, format, log: this.model.get("log") });
    this.cross(this.chart);
    const head = this.model.get("heads")[0] || { last: {} };
    this.chart.canvas.setAttribute("aria-label", `${this.t("loss")}: ${short(head.last.loss)}`);
    this.chart.canvas.dataset.points = this.shown.map(({ x }) => x.length).join(",");
  }

  paintSmall(across, format) {
    const wanted = SMALL.filter((item) => this.shown.some(({ run }) => this.told(run, item)));
    const loaded = this.shown.find(({ run }) => run.columns.expert_load);
    const names = [...wanted.map((item) => item.name), ...(loaded ? ["expert_load"] : [])];
    if (names.join() !== [...this.smallCharts.keys()].join()) {
      this.smallCharts = new Map(names.map((name) => [name, this.smallCharts.get(name) || this.makeChart(124)]));
      fill(this.small, [...this.smallCharts].map(([name, chart]) => el("div", {}, el("div", { class: "pgl-charttitle" }, this.t(name)), chart.frame)));
    }
    for (const { name, log, zero, marks } of wanted) {
      const series = this.shown.filter(({ run }) => run.columns[name]).map(({ run, x, color }) => ({
        x, y: run.columns[name], low: run.columns[`${name}.low`], high: run.columns[`${name}.high`], color }));
      const chart = this.smallCharts.get(name);
      const drawn = marks ? this.shown.flatMap((item) => this.marksOf(item, marks, style(this.node, "--pgl-bad"))) : [];
      chart.scale = drawChart(chart.canvas, chart.height, { series, across, format, log, zero, marks: drawn });
      this.cross(chart);
    }
    if (loaded) {
      const chart = this.smallCharts.get("expert_load");
      chart.scale = drawLoad(chart.canvas, chart.height, loaded.run, format, across, loaded.x);
      this.cross(chart);
    }
  }

  // Whether the run has this quantity; a loss scale that is always 1 is none.
  told(run, { name }) {
    return run.columns[name] && (name !== "loss_scale" || this.scaled(run));
  }

  scaled(run) {
    const column = run.columns.loss_scale;
    return column.some((value) => value !== 1);
  }

  cross({ scale }) {
    if (!scale || this.pointer === null || this.pointer === undefined) return;
    const x = Math.round(scale.toX(this.pointer));
    if (x < scale.box.left || x > scale.box.right) return;
    scale.context.fillStyle = style(this.node, "--pgl-muted");
    scale.context.fillRect(x, scale.box.top, 1, scale.box.bottom - scale.box.top);
    if (this.drag !== undefined) {
      scale.context.globalAlpha = 0.15;
      scale.context.fillStyle = style(this.node, "--pgl-accent");
      scale.context.fillRect(scale.toX(this.drag), scale.box.top, x - scale.toX(this.drag), scale.box.bottom - scale.box.top);
      scale.context.globalAlpha = 1;
    }
  }

  showLegend() {
    const t = this.t;
    const keys = this.shown.length > 1 ? this.shown.map(({ run, color }) => el("span", { class: "pgl-key" }, el("i", { style: `background:${color}` }), run.name)) : [];
    const words = `${t("legend_train")}${this.shown.some(({ run }) => run.evals.length) ? `, ${t("legend_eval")}` : ""}`;
    fill(this.legend, t(`unit_${this.model.get("unit")}`), keys, el("span", { class: "pgl-muted", style: "font-weight:400" }, words));
  }

  showTip() {
    const scale = this.chart.scale;
    this.tip.hidden = !scale || this.pointer === null || this.pointer === undefined;
    if (this.tip.hidden) return;
    const lines = [];
    for (const { run, x, color, loss, smoothed } of this.shown) {
      if (!x.length) continue;
      const row = nearest(x, this.pointer);
      const values = [`${this.t("axis_step")} ${run.columns.step[row].toLocaleString("en-US")}`, `${this.t(this.model.get("unit") === "bits" ? "bits" : "loss")} ${short(loss[row])}`];
      if (this.model.get("smoothing") > 0) values.push(`${this.t("smoothed")} ${short(smoothed[row])}`);
      for (const { name } of SMALL.filter((item) => this.told(run, item))) values.push(`${this.t(name)} ${short(run.columns[name][row], 3)}`);
      if (run.columns.expert_load) values.push(`${this.t("expert_load")} ${loadsAt(run, row).join(" ")}`);
      const near = run.evals.filter((one) => Math.abs(one.step - run.columns.step[row]) <= (run.columns.count[row] || 1) / 2);
      if (near.length) values.push(`${this.t("perplexity")} ${short(near[near.length - 1].perplexity)}`);
      lines.push(el("div", {}, el("i", { style: `background:${color}` }), this.shown.length > 1 ? `${run.name}: ` : "", values.join("  ·  ")));
    }
    fill(this.tip, lines);
    const x = scale.toX(this.pointer);
    const wide = this.tip.offsetWidth;
    const whole = this.chart.frame.clientWidth;
    this.tip.style.left = `${Math.max(0, Math.min(whole - wide, x + 14 + wide > whole ? x - wide - 14 : x + 14))}px`;
  }

  savePicture() {
    const charts = [["", this.chart.canvas], ...[...this.smallCharts].map(([name, chart]) => [this.t(name), chart.canvas])];
    const ratio = window.devicePixelRatio || 1;
    const wide = this.chart.canvas.width;
    const columns = Math.max(1, Math.floor(wide / (charts[1] ? charts[1][1].width : wide)));
    const rows = Math.ceil((charts.length - 1) / columns);
    const tall = charts[1] ? charts[1][1].height + 22 * ratio : 0;
    const picture = el("canvas", {});
    picture.width = wide + 24 * ratio;
    picture.height = this.chart.canvas.height + rows * tall + 46 * ratio;
    const context = picture.getContext("2d");
    context.fillStyle = style(this.node, "--pgl-bg") || "#fff";
    context.fillRect(0, 0, picture.width, picture.height);
    context.fillStyle = style(this.node, "--pgl-fg");
    context.font = `600 ${14 * ratio}px system-ui, sans-serif`;
    let left = 12 * ratio;
    this.shown.forEach(({ run, color }) => {
      context.fillStyle = this.shown.length > 1 ? color : style(this.node, "--pgl-fg");
      context.fillText(run.name, left, 20 * ratio);
      left += context.measureText(run.name).width + 18 * ratio;
    });
    context.drawImage(this.chart.canvas, 12 * ratio, 30 * ratio);
    charts.slice(1).forEach(([name, canvas], index) => {
      const [x, y] = [12 * ratio + (index % columns) * (wide / columns), 36 * ratio + this.chart.canvas.height + Math.floor(index / columns) * tall];
      context.fillStyle = style(this.node, "--pgl-muted");
      context.font = `600 ${12 * ratio}px system-ui, sans-serif`;
      context.fillText(name, x, y + 12 * ratio);
      context.drawImage(canvas, x, y + 18 * ratio);
    });
    picture.toBlob((blob) => download(`${this.runs.list[0].name}.png`, blob), "image/png");
  }
}

function nearest(sorted, value) {
  let [low, high] = [0, sorted.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1; else high = middle;
  }
  return low > 0 && Math.abs(sorted[low - 1] - value) < Math.abs(sorted[low] - value) ? low - 1 : low;
}

export default {
  render({ model, el: node }) {
    const monitor = new Monitor(model, node);
    return () => monitor.close();
  },
};
