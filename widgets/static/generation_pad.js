// A prompt, one or two columns that write after it, and what was written before.

const PAD_SLIDERS = [
  { name: "max_new_tokens", low: 1, high: 512, step: 1, off: null }, { name: "temperature", low: 0, high: 2, step: 0.05, off: null },
  { name: "top_k", low: 0, high: 100, step: 1, off: 0 }, { name: "top_p", low: 0.05, high: 1, step: 0.01, off: 1 },
  { name: "repetition_penalty", low: 1, high: 2, step: 0.05, off: null },
];

export default {
  render({ model, el: node }) {
    root(node, "pad");
    let [t, box, write, stop, grid, past, news, beside, cuts] = [];
    let parts = [];
    const change = (number, name, value) => {
      const columns = model.get("columns").map((column, index) => (index === number ? { ...column, settings: { ...column.settings, [name]: value } } : column));
      model.set("columns", columns);
      model.save_changes();
    };
    const slider = (number, { name, low, high, step, off }) => {
      const value = model.get("columns")[number].settings[name];
      const shown = el("span", { style: "min-width:2.6em" });
      const say = () => { const now = model.get("columns")[number].settings[name]; shown.textContent = now === null ? t("off") : short(now, 3); };
      const input = el("input", { type: "range", min: low, max: high, step, style: "width:90px", "data-name": name, oninput: () => {
        const chosen = Number(input.value);
        change(number, name, chosen === off ? null : chosen);
        say();
      } });
      input.value = value === null ? off : value;
      say();
      return el("label", { class: "pgl-label" }, t(name), input, shown);
    };
    const seed = (number) => {
      const value = model.get("columns")[number].settings.seed;
      const input = el("input", { type: "number", min: 0, step: 1, style: "width:90px", placeholder: t("fresh"), value: value === null ? "" : value,
        onchange: () => change(number, "seed", input.value === "" ? null : Math.max(0, Math.round(Number(input.value)))) });
      return el("label", { class: "pgl-label" }, t("seed"), input);
    };
    const chooser = (number) => {
      const names = model.get("models");
      const chosen = model.get("columns")[number].model;
      if (names.length < 2) return el("b", {}, names[0]);
      const select = el("select", { style: "width:auto", "aria-label": t("model"), onchange: () => {
        model.set("columns", model.get("columns").map((column, index) => (index === number ? { ...column, model: Number(select.value) } : column)));
        model.save_changes();
      } }, names.map((name, index) => el("option", { value: index, selected: index === chosen }, name)));
      return select;
    };
    const whole = (number) => model.get("prompt") + model.get("outputs")[number].text;  // whatever has been typed since
    const columnOf = (number) => {
      const text = el("div", { class: "pgl-written", "aria-live": "polite", tabindex: 0 });
      const facts = el("span", { class: "pgl-muted" });
      const note = el("div", { class: "pgl-notice", hidden: true });
      const further = el("button", { type: "button", class: "pgl-quiet", onclick: () => { box.value = whole(number); box.focus(); } }, t("further"));
      const copy = el("button", { type: "button", class: "pgl-quiet", onclick: () => copyText(whole(number), copy, t) }, t("copy"));
      parts[number] = { text, facts, note, further, copy };
      return el("div", { class: "pgl-column" }, el("div", { class: "pgl-row" }, chooser(number)),
        el("details", { open: true }, el("summary", {}, t("settings")), el("div", { class: "pgl-row" }, PAD_SLIDERS.map((row) => slider(number, row)), seed(number))),
        text, note, el("div", { class: "pgl-row" }, facts, el("span", { class: "pgl-push" }, copy, further)));
    };
    const written = ({ text, pieces }) => (model.get("show_tokens") ? pieces.map(([piece, ids], index) => el("span", { class: "pgl-made",
      style: `--pgl-piece:${colorOf(index)}`, title: ids.join(" "), "data-line": piece.startsWith("\n") }, piece)) : [text]);
    const show = () => {
      const [outputs, writing] = [model.get("outputs"), model.get("writing")];
      outputs.forEach((output, number) => {
        const part = parts[number];
        if (!part) return;
        fill(part.text, el("span", { class: "pgl-muted" }, model.get("prompt")), ...written(output), output.state === "writing" ? el("i", { class: "pgl-caret" }) : null);
        part.text.dataset.state = output.state;
        part.note.hidden = !output.note;
        part.note.textContent = output.note;
        part.note.className = output.state === "refused" ? "pgl-error" : "pgl-notice";
        const speed = output.seconds > 0 && output.tokens > 1 ? ` · ${short(output.tokens / output.seconds, 3)} ${t("speed")}` : "";
        const end = output.reason ? ` · ${t(`reason_${output.reason}`)}` : output.state === "waiting" ? ` · ${t("waiting")}` : "";
        part.facts.textContent = output.state && output.state !== "refused" ? `${t("tokens", { number: output.tokens })}${speed}${end}${output.seed === null ? "" : ` · ${t("seed")} ${output.seed}`}` : "";
        part.further.disabled = part.copy.disabled = writing || !output.text;
      });
      write.hidden = writing;
      stop.hidden = !writing;
      beside.disabled = writing;
      for (const one of past.children) one.disabled = writing;
    };
    const recall = (number) => {
      box.value = model.get("history")[number].prompt;  // the kernel may show this prompt already: then it has no change to tell
      model.send({ do: "recall", number });
    };
    const showPast = () => fill(past, model.get("history").map((entry, number) => el("button", { type: "button", class: "pgl-past", disabled: model.get("writing"), onclick: () => recall(number) },
      el("span", { class: "pgl-muted" }, entry.prompt.slice(-40)), entry.outputs.map((output) => output.text).join("  ‖  ").slice(0, 120))));
    const layout = () => {
      parts = [];
      fill(grid, model.get("columns").map((column, number) => columnOf(number)));
      beside.setAttribute("aria-pressed", model.get("columns").length > 1);
      show();
    };
    const begin = () => { news.hidden = true; if (!model.get("writing")) model.send({ do: "write", prompt: box.value }); };
    const build = () => {
      t = wordsOf(model, "pad");
      box = el("textarea", { rows: 3, "aria-label": t("prompt"), value: model.get("prompt"), onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); event.stopPropagation(); begin(); }
      } });
      write = el("button", { type: "button", class: "pgl-primary pgl-write", title: "Ctrl+Enter", onclick: begin }, t("write"));
      stop = el("button", { type: "button", class: "pgl-danger", hidden: true, onclick: () => model.send({ do: "stop" }) }, t("stop"));
      beside = el("button", { type: "button", onclick: () => model.send({ do: "beside" }) }, t("beside"));
      cuts = el("input", { type: "checkbox", checked: model.get("show_tokens"), onchange: () => { model.set("show_tokens", cuts.checked); model.save_changes(); } });
      news = el("div", { class: "pgl-error", hidden: true, role: "alert" });
      grid = el("div", { class: "pgl-columns" });
      past = el("div", { class: "pgl-pasts" });
      fill(node, el("div", { class: "pgl-row", style: "margin-bottom:6px" }, el("span", { class: "pgl-title" }, t("title")),
        el("span", { class: "pgl-row pgl-push" }, el("label", { class: "pgl-label pgl-cuts" }, cuts, t("show_tokens")), beside, write, stop, languageSwitch(model))), box, news, grid,
      el("details", {}, el("summary", {}, t("history")), past));
      layout();
      showPast();
    };
    const refused = (message) => { if (message.kind === "refused") { news.textContent = message.text; news.hidden = false; } };
    const promptChanged = () => { if (box !== document.activeElement) box.value = model.get("prompt"); show(); };
    const columnsChanged = () => { if (!grid.contains(document.activeElement) || model.get("columns").length !== parts.length) layout(); };
    const cutsChanged = () => { cuts.checked = model.get("show_tokens"); show(); };
    const wired = [["change:outputs change:writing", show], ["change:show_tokens", cutsChanged], ["change:history", showPast], ["change:columns", columnsChanged],
      ["change:prompt", promptChanged], ["msg:custom", refused]];
    wired.forEach(([names, act]) => model.on(names, act));
    const off = whenLanguageChanges(model, build);
    return () => { off(); wired.forEach(([names, act]) => model.off(names, act)); };
  },
};
