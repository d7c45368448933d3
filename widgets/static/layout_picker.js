// The planner's layouts as a table, the mesh of the chosen one, and what the chosen rank holds.

const GIB = 2 ** 30;

export default {
  render({ model, el: node }) {
    root(node, "layout");
    let [t, table, why, note, grid, held, fields] = [];
    const set = (name, value) => { model.set(name, value); model.save_changes(); };
    const more = (row) => [row.micro_batches > 1 ? t("micro_batches", { number: row.micro_batches }) : null, row.optimizer ? t("optimizer") : null,
      row.recompute ? t("recompute") : null, row.expert > 1 ? t("expert", { number: row.expert }) : null].filter(Boolean).join(", ");
    const showTable = () => {
      note.textContent = model.get("note");
      note.hidden = !model.get("note");
      const chosen = model.get("chosen");
      const rows = model.get("layouts");
      const most = Math.max(1, ...rows.map((row) => Math.max(row.total, row.capacity)));
      fill(table, el("thead", {}, el("tr", {}, ["layout", "need", "step_time", "speed", "bubble", "more"].map((name) => el("th", {}, t(name))))),
        el("tbody", {}, rows.map((row, number) => el("tr", { "data-chosen": number === chosen, "data-fits": String(row.fits) },
          el("td", {}, el("button", { type: "button", class: "pgl-pick", "aria-pressed": String(number === chosen), onclick: () => set("chosen", number) }, `${row.pipeline} × ${row.data} × ${row.tensor}`),
            row.recommended ? el("span", { class: "pgl-good" }, ` ${t("recommended")}`) : null),
          el("td", {}, el("div", { class: "pgl-need" }, el("i", { style: `width:${(100 * row.total) / most}%` }), el("u", { style: `left:${(100 * row.capacity) / most}%` })),
            el("span", { class: row.fits ? "pgl-muted" : "pgl-bad" }, `${short(row.total / GIB, 3)} / ${short(row.capacity / GIB, 3)} GB${row.fits ? "" : ` · ${t("too_much")}`}`)),
          el("td", {}, row.fits ? `${short(row.step_seconds, 3)} s` : "–"), el("td", {}, row.fits ? short(row.tokens_per_second, 3) : "–"),
          el("td", {}, `${Math.round(100 * row.bubble)} %`), el("td", { class: "pgl-muted" }, more(row))))));
      fill(why, model.get(model.get("language") === "zh" ? "why_zh" : "why").map((sentence) => el("li", {}, sentence)));
    };
    const showMesh = () => {
      const mesh = model.get("mesh");
      if (!mesh.stages) { fill(grid); return; }
      const rank = model.get("rank");
      const square = (number, column) => el("button", { type: "button", class: "pgl-rank", style: `background:${colorOf(column)}`, "aria-pressed": String(number === rank), onclick: () => set("rank", number) }, String(number));
      fill(grid, mesh.stages.map((stage, number) => {
        const [first, last] = stage.layers;
        const span = first === last ? t("layer", { first }) : t("layers", { first, last });
        return el("div", { class: "pgl-meshstage" }, el("b", {}, t("stage", { number })), el("div", { class: "pgl-muted" }, stage.query ? `${span} (${t("query_layer")})` : span),
          stage.ranks.map((ranks, data) => el("div", { class: "pgl-ranks" }, ranks.map(square), el("small", { class: "pgl-muted" }, stage.ranks.length > 1 ? t("data", { number: data }) : ""))),
          mesh.hidden ? el("small", { class: "pgl-muted" }, t("hidden_rows", { number: mesh.hidden })) : null);
      }));
    };
    const spans = (layers) => {
      const parts = [];
      for (const layer of layers) {
        const last = parts[parts.length - 1];
        if (last && last[1] === layer - 1) last[1] = layer; else parts.push([layer, layer]);
      }
      return parts.map(([first, last]) => (first === last ? String(first) : `${first}–${last}`)).join(", ");
    };
    const showHeld = () => {
      const found = model.get("held");
      if (!found.rows) { fill(held); return; }
      fill(held, el("div", { class: "pgl-charttitle" }, t("rank_holds", { ...found, parameters: found.parameters.toLocaleString("en-US") })),
        el("div", { class: "pgl-scroll" }, el("table", { class: "pgl-table" }, el("thead", {}, el("tr", {}, ["where", "parameter", "whole", "here"].map((name) => el("th", {}, t(name))))),
          el("tbody", {}, found.rows.map((row) => el("tr", {}, el("td", {}, row.where === "block" ? spans(row.layers) : t(row.where)), el("td", {}, el("code", {}, row.name)),
            el("td", {}, row.whole.join(" × ")), el("td", {}, row.here === null ? el("span", { class: "pgl-muted" }, t("all")) : row.here.map(([first, last]) => `${first}–${last}`).join(" × "))))))),
        el("details", {}, el("summary", {}, t("command")), el("pre", {}, model.get("settings"))));
    };
    const showFields = () => fields.forEach((field) => { if (field !== document.activeElement) field.value = model.get(field.dataset.name) ?? ""; });
    const field = (name, choices) => {
      const attributes = { "data-name": name, "aria-label": t(name), onchange: () => {
        if (choices) set(name, input.value);
        else if (input.value === "") { if (name === "memory") set(name, null); else showFields(); } else set(name, name === "memory" ? Number(input.value) : Math.round(Number(input.value)));
      } };
      const input = choices ? el("select", attributes, choices.map((choice) => el("option", { value: choice }, choice))) : el("input", { type: "number", min: 1, step: "any", ...attributes });
      fields.push(input);
      return el("label", { class: "pgl-field" }, el("span", {}, t(name)), input);
    };
    const build = () => {
      t = wordsOf(model, "layout");
      fields = [];
      [table, why, grid, held] = [el("table", { class: "pgl-table" }), el("ul", { class: "pgl-why" }), el("div", { class: "pgl-mesh", tabindex: 0 }), el("div", {})];
      note = el("div", { class: "pgl-error", hidden: true, role: "alert" });
      fill(node, el("div", { class: "pgl-row", style: "margin-bottom:6px" }, el("span", { class: "pgl-title" }, t("title")), el("span", { class: "pgl-push" }, languageSwitch(model))),
        el("div", { class: "pgl-fields" }, field("preset", model.get("presets")), field("devices"), field("hardware", model.get("hardwares")), field("memory"), field("batch")),
        note, el("div", { class: "pgl-scroll" }, table), why, el("div", { class: "pgl-charttitle" }, t("mesh")), grid, held);
      [showFields, showTable, showMesh, showHeld].forEach((act) => act());
    };
    const wired = [["change:layouts change:why change:note change:chosen", () => { showTable(); showFields(); }], ["change:mesh change:rank", showMesh], ["change:held change:settings", showHeld],
      ["change:devices change:batch change:memory change:hardware change:preset", showFields]];
    wired.forEach(([names, act]) => model.on(names, act));
    const off = whenLanguageChanges(model, build);
    return () => { off(); wired.forEach(([names, act]) => model.off(names, act)); };
  },
};
