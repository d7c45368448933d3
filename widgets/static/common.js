// What every widget of the lab uses: elements, words, numbers, colours, a busy canvas. Texts become text nodes only.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "value" || name === "checked" || name === "disabled" || name === "textContent") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  if (tag === "textarea") node.addEventListener("keydown", keepLineBreak);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// JupyterLab's notebook would take Enter for itself, and no new line would come.
function keepLineBreak(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
}

function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Words of the catalogue in the widget's language; {name} is replaced.
function wordsOf(model, section) {
  return (key, values = {}) => {
    const all = model.get("texts")[model.get("language")] || {};
    const text = (all[section] || {})[key] ?? (all.common || {})[key] ?? key;
    return typeof text === "string" ? text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole) : text;
  };
}

function languageSwitch(model) {
  const button = el("button", { class: "pgl-quiet pgl-language", type: "button", title: "中文 / English",
    onclick: () => { model.set("language", model.get("language") === "en" ? "zh" : "en"); model.save_changes(); } });
  const name = () => { button.textContent = model.get("language") === "en" ? "中文" : "English"; };
  model.on("change:language", name);
  name();
  return button;
}

// A frame for a widget: rebuilt when the language changes, so that every word follows.
function root(node, kind) {
  node.classList.add("pgl", `pgl-${kind}`);
  node.lang = "en";
  return node;
}

function whenLanguageChanges(model, build) {
  model.on("change:language", build);
  build();
  return () => model.off("change:language", build);
}

function short(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e15 || size < 1e-3) return value.toExponential(2).replace("e+", "e").replace("-", "−");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

function compact(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e13 || size < 1e-3)) return value.toExponential(0).replace("e+", "e").replace("-", "−");
  for (const [limit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= limit) return `${Number((value / limit).toPrecision(3))}${name}`;
  }
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

function clock(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  const [days, hours] = [Math.floor(whole / 86400), Math.floor((whole % 86400) / 3600)];
  const [minutes, rest] = [Math.floor((whole % 3600) / 60), whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  if (days) return `${days} d ${hours} h`;
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

// Colours of curves, slices and pieces: in elements they follow the theme by themselves, a canvas is told the value.
const colorOf = (number) => `var(--pgl-color${number % 6})`;
const paintOf = (node, number) => style(node, `--pgl-color${number % 6}`);

function style(node, name) {
  return getComputedStyle(node).getPropertyValue(name).trim();
}

// Calls draw() at most once a frame, when the size or the theme changes, and when asked.
function painter(canvas, draw) {
  let asked = 0;
  const ask = () => {
    if (!asked) asked = requestAnimationFrame(() => { asked = 0; if (canvas.isConnected) draw(); });
  };
  const sizes = new ResizeObserver(ask);
  sizes.observe(canvas);
  const themes = new MutationObserver(() => setTimeout(ask, 50));
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  return { ask, stop: () => { sizes.disconnect(); themes.disconnect(); cancelAnimationFrame(asked); } };
}

// The drawing context of a canvas in units of the page, sharp on every screen.
function pen(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth || 600;
  canvas.style.height = `${height}px`;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) { canvas.width = wide; canvas.height = high; }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width];
}

function download(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function copyText(text, button, t) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch (error) {  // a page that came over plain http from another machine has no clipboard
    const area = el("textarea", { class: "pgl-offscreen", value: text });
    document.body.append(area);
    area.select();
    copied = document.execCommand("copy");
    area.remove();
  }
  button.textContent = t(copied ? "copied" : "not_copied");
  setTimeout(() => { button.textContent = t("copy"); }, 1200);
}

// Round numbers between two values, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((size) => size >= rough) || rough;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

function logTicks(low, high, count) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const part of [1, 2, 5]) {
      const value = part * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  if (found.length < 2) return ticks(low, high, count);
  if (found.length <= count + 2) return found;
  const whole = found.filter((value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9);
  const every = Math.max(1, Math.ceil(whole.length / count));
  return whole.length >= 2 ? whole.filter((_, index) => index % every === 0) : found.filter((_, index) => index % 2 === 0);
}
