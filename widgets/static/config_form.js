// Settings as a form. What is typed goes to the kernel, which alone decides whether it works.

class Form {
  constructor(model, node) {
    this.model = model;
    this.node = root(node, "form");
    this.section = "model";
    this.timers = {};
    this.listeners = [
      ["change:version", () => this.showValues(true)],
      ["change:error change:values change:version", () => this.showError()],  // what was refused is of the settings before
      ["change:figures", () => this.showFigures()], ["change:command", () => { this.command.textContent = model.get("command"); }],
      ["change:changed", () => this.showChanged()], ["msg:custom", (message) => this.receive(message)],
    ];
    for (const [name, call] of this.listeners) model.on(name, call);
    this.unbuild = whenLanguageChanges(model, () => this.build());
  }

  close() {
    for (const [name, call] of this.listeners) this.model.off(name, call);
    this.unbuild();
  }

  receive(message) {
    if (message.kind === "file") download(message.name, new Blob([message.text], { type: "application/yaml" }));
    if (message.kind === "refused") { this.error.textContent = message.text; this.error.hidden = false; }
  }

  build() {
    const t = wordsOf(this.model, "form");
    this.t = t;
    const model = this.model;
    this.preset = el("select", { style: "width:auto", class: "pgl-preset", onchange: () => model.send({ do: "preset", name: this.preset.value }) },
      model.get("presets").map((name) => el("option", { value: name }, name)));
    this.hardware = el("select", { style: "width:auto", onchange: () => { model.set("hardware", this.hardware.value); model.save_changes(); } },
      model.get("hardwares").map((name) => el("option", { value: name }, name)));
    this.hardware.value = model.get("hardware");
    const file = el("input", { type: "file", accept: ".yaml,.yml", hidden: true, onchange: async () => {
      if (file.files[0]) model.send({ do: "load", text: await file.files[0].text() });
      file.value = "";
    } });
    const sections = [...new Set(model.get("fields").map((field) => field.section))];
    this.tabs = sections.map((name) => el("button", { type: "button", "data-section": name, onclick: () => { this.section = name; this.showSection(); } }, t(`section_${name}`)));
    this.inputs = new Map();
    this.groups = sections.map((name) => el("div", { class: "pgl-fields", "data-section": name },
      model.get("fields").filter((field) => field.section === name).map((field) => this.field(field))));
    this.help = el("div", { class: "pgl-help" }, t("hint"));
    this.error = el("div", { class: "pgl-error", hidden: true, role: "alert" });
    this.figures = el("div", { class: "pgl-tiles", style: "margin:10px 0 6px" });
    this.memory = el("div", {});
    this.command = el("pre", { class: "pgl-command" }, model.get("command"));
    const copy = el("button", { type: "button", onclick: () => copyText(model.get("command"), copy, t) }, t("copy"));
    fill(this.node,
      el("div", { class: "pgl-row" }, el("label", { class: "pgl-label" }, t("preset"), this.preset),
        el("label", { class: "pgl-label" }, t("hardware"), this.hardware),
        el("span", { class: "pgl-row pgl-push", style: "gap:6px" }, el("button", { type: "button", onclick: () => file.click() }, t("load")), file,
          el("button", { type: "button", onclick: () => model.send({ do: "save" }) }, t("save")), languageSwitch(model))),
      el("div", { class: "pgl-choice pgl-tabs", role: "group" }, this.tabs), this.groups, this.help, this.error, this.figures, this.memory,
      el("div", { class: "pgl-row", style: "margin-top:8px" }, el("span", { class: "pgl-charttitle" }, t("command")), el("span", { class: "pgl-push" }, copy)), this.command);
    this.showSection();
    this.showValues(true);
    this.showFigures();
    this.showError();
  }

  field(field) {
    const send = (text, wait) => {
      clearTimeout(this.timers[field.key]);
      const tell = () => this.model.send({ do: "edit", key: field.key, text });
      if (wait) this.timers[field.key] = setTimeout(tell, wait); else tell();  // at once, before the click on Save or Start that ended it
    };
    let input;
    if (field.kind === "bool") {
      input = el("input", { type: "checkbox", onchange: () => send(input.checked ? "true" : "false", 0) });
    } else if (field.kind === "choice") {
      input = el("select", { onchange: () => send(input.value, 0) }, field.choices.map((name) => el("option", { value: name }, name)));
    } else {
      input = el("input", { type: "text", spellcheck: "false", inputmode: field.kind === "number" ? "decimal" : "text",
        placeholder: field.optional ? this.t("none") : "", oninput: () => send(input.value, 250), onchange: () => send(input.value, 0) });
    }
    input.dataset.key = field.key;
    this.inputs.set(field.key, [input, field]);
    const explain = () => fill(this.help, el("code", {}, field.key), ` ${this.t("help")[field.key]}`);
    return el("label", { class: "pgl-field", "data-key": field.key, onmouseenter: explain, onfocusin: explain },
      el("span", {}, this.t("labels")[field.key]), input);
  }

  showSection() {
    this.tabs.forEach((tab) => tab.setAttribute("aria-pressed", String(tab.dataset.section === this.section)));
    this.groups.forEach((group) => { group.hidden = group.dataset.section !== this.section; });
  }

  showValues(all) {
    const values = this.model.get("values");
    this.preset.value = this.model.get("preset");
    for (const [key, [input, field]] of this.inputs) {
      if (!all && input === document.activeElement) continue;
      if (field.kind === "bool") input.checked = values[key] === "true"; else input.value = values[key];
    }
    this.showChanged();
  }

  showChanged() {
    const changed = new Set(this.model.get("changed"));
    for (const [key, [input]] of this.inputs) input.closest(".pgl-field").toggleAttribute("data-changed", changed.has(key));
  }

  showError() {
    const error = this.model.get("error");
    this.error.hidden = !error.text;
    this.error.textContent = error.text || "";
    for (const [key, [input]] of this.inputs) input.closest(".pgl-field").toggleAttribute("data-wrong", key === error.key);
  }

  showFigures() {
    const t = this.t;
    const figures = this.model.get("figures");
    const bytes = (value) => (value >= 2 ** 30 ? `${short(value / 2 ** 30, 3)} GB` : `${short(value / 2 ** 20, 3)} MB`);
    const tiles = [["parameters", compact(figures.parameters)], ["devices", String(figures.devices)]];
    if (figures.total !== undefined) {
      tiles.push(["memory", bytes(figures.total)], ["step_time", figures.step_seconds >= 1 ? clock(figures.step_seconds) : `${short(figures.step_seconds * 1000, 3)} ms`],
        ["whole_time", clock(figures.seconds)], ["speed", compact(figures.tokens_per_second)], ["tokens", compact(figures.tokens)]);
    }
    fill(this.figures, tiles.map(([name, value]) => el("div", { class: "pgl-tile", "data-name": name }, el("div", { title: t(name) }, t(name)), el("div", {}, value))));
    if (!figures.memory) { fill(this.memory, el("div", { class: "pgl-muted" }, figures.note || "")); return; }
    const whole = Math.max(figures.total, figures.capacity);
    const kinds = Object.entries(figures.memory).filter(([, size]) => size > 0);
    fill(this.memory,
      el("div", { class: "pgl-memory", "data-fits": String(figures.fits) }, kinds.map(([kind, size], index) => el("div", {
        title: `${t(`memory_${kind}`).replace("memory_", "")}: ${bytes(size)}`, style: `width:${(100 * size) / whole}%;background:${colorOf(index)}` })),
      el("i", { style: `left:${(100 * figures.capacity) / whole}%` })),
      el("div", { class: "pgl-row pgl-muted", style: "font-size:12px" }, kinds.map(([kind, size], index) => el("span", { class: "pgl-key" },
        el("i", { style: `background:${colorOf(index)}` }), `${t(`memory_${kind}`).replace("memory_", "")} ${bytes(size)}`)),
      el("span", { class: figures.fits ? "" : "pgl-bad" }, t(figures.fits ? "fits" : "too_much", { room: bytes(figures.capacity) })),
        figures.in_top ? el("span", {}, t("in_top", { size: bytes(figures.in_top) })) : ""));
  }
}

export default {
  render({ model, el: node }) {
    const form = new Form(model, node);
    return () => form.close();
  },
};
