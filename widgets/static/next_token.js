// Two bars a token, the model's own probability and what is left of it after the samplers, or before and after the one that
// was clicked; a click on a token writes it.

export default {
  render({ model, el: node }) {
    root(node, "next");
    let [t, box, bars, stages, note, length, wanted, sought] = [];
    let [timer, wait, picked, caption] = [0, 0, ""];
    const stageName = (stage) => t(`stage_${stage.name}`).replace("stage_", "");
    const show = () => {
      const all = model.get("stages");
      const one = all.findIndex((stage) => stage.name === picked);
      const [from, to] = one > 0 ? [one - 1, one] : [0, all.length - 1];
      const tokens = model.get("tokens").map((token) => ({ ...token, before: token.shares[from], after: token.shares[to] }));
      const most = Math.max(1e-9, ...tokens.map((token) => Math.max(token.before, token.after)));
      caption.textContent = one > 0 ? t("before_after_one", { stage: stageName(all[one]) }) : t("before_after");
      fill(bars, tokens.map((token) => el("button", { type: "button", class: "pgl-token", "data-gone": token.after === 0, title: t("write", { id: token.id }),
        onclick: () => model.send({ do: "add", id: token.id }) },
      el("b", {}, token.piece), el("span", { class: "pgl-bars" }, el("i", { class: "pgl-before", style: `width:${(100 * token.before) / most}%` }),
        el("i", { style: `width:${(100 * token.after) / most}%;background:${colorOf(0)}` })),
      el("span", { class: "pgl-muted" }, `${(100 * token.before).toFixed(1)} %`), el("span", {}, `${(100 * token.after).toFixed(1)} %`))));
      fill(stages, all.map((stage, number) => el("button", { type: "button", class: "pgl-stage", "data-changed": stage.changed, "aria-pressed": String(number === one && one > 0),
        onclick: () => { picked = number === one ? "" : stage.name; show(); } }, el("b", {}, stageName(stage)),
        ` ${t("left", { number: stage.left.toLocaleString("en-US") })} · ${t("bits", { number: short(stage.entropy, 3) })}`)));
      note.textContent = model.get("note");
      note.hidden = !model.get("note");
      length.textContent = t("length", { used: model.get("length")[0], whole: model.get("length")[1] });
      if (box !== document.activeElement) box.value = model.get("text");
    };
    const showSought = () => {
      const { tokens = [], probability } = model.get("sought");
      const percent = (value) => `${short(100 * value, 2)} %`;
      fill(sought, tokens.map((token, number) => [number ? " × " : "", el("b", {}, token.piece), ` ${percent(token.probability)} (${t("ranked", { rank: token.rank.toLocaleString("en-US") })})`]).flat(),
        tokens.length > 1 ? ` = ${percent(probability)}` : "");
    };
    const slider = ([name, [low, high, step, off]]) => {
      const value = model.get("settings")[name];
      const shown = el("span", { style: "min-width:2.6em" });
      const input = el("input", { type: "range", min: low, max: high, step, style: "width:110px", "data-name": name, oninput: () => {
        const number = Number(input.value);
        model.set("settings", { ...model.get("settings"), [name]: number === off ? null : number });
        model.save_changes();
        say();
      } });
      const say = () => { const number = model.get("settings")[name]; shown.textContent = number === null ? t("off") : short(number, 3); };
      input.value = value === null ? off : value;
      say();
      return el("label", { class: "pgl-label" }, t(name), input, shown);
    };
    const build = () => {
      t = wordsOf(model, "next");
      box = el("textarea", { rows: 2, "aria-label": t("text"), value: model.get("text"), oninput: () => {
        clearTimeout(timer);
        timer = setTimeout(() => model.send({ do: "text", text: box.value }), 400);
      } });
      wanted = el("input", { type: "text", style: "width:110px", value: model.get("wanted"), oninput: () => {
        clearTimeout(wait);
        wait = setTimeout(() => { note.hidden = true; model.send({ do: "seek", text: wanted.value }); }, 400);
      } });
      sought = el("span", { class: "pgl-sought", "aria-live": "polite" });
      [bars, stages] = [el("div", { class: "pgl-tokenlist" }), el("div", { class: "pgl-stages" })];
      [note, caption] = [el("div", { class: "pgl-error", hidden: true, role: "alert" }), el("div", { class: "pgl-charttitle" })];
      length = el("span", { class: "pgl-muted" });
      fill(node, el("div", { class: "pgl-row", style: "margin-bottom:6px" }, el("span", { class: "pgl-title" }, t("title")), length,
        el("span", { class: "pgl-row pgl-push" }, el("button", { type: "button", class: "pgl-primary", onclick: () => { box.blur(); model.send({ do: "draw" }); } }, t("draw")), languageSwitch(model))),
      box, el("div", { class: "pgl-row", style: "margin:8px 0" }, Object.entries(model.get("sliders")).map(slider)),
      el("div", { class: "pgl-row", style: "margin:8px 0" }, el("label", { class: "pgl-label" }, t("seek"), wanted), sought), note,
      caption, bars, stages);
      show();
      showSought();
    };
    const refused = (message) => { if (message.kind === "refused") { note.textContent = message.text; note.hidden = false; } };
    model.on("change:tokens change:stages change:note change:text", show);
    model.on("change:sought", showSought);
    model.on("msg:custom", refused);
    const off = whenLanguageChanges(model, build);
    return () => { off(); model.off("change:tokens change:stages change:note change:text", show); model.off("change:sought", showSought); model.off("msg:custom", refused); };
  },
};
