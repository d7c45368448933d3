// A text of one's own: its path, the minutes, the buttons for advice and for the start, and what these said last.

export default {
  render({ model, el: node }) {
    root(node, "starter");
    const build = () => {
      const t = wordsOf(model, "start");
      let timer = 0;
      const tell = () => {
        clearTimeout(timer);
        refusal.hidden = true;
        model.set("text", text.value);
        if (Number(minutes.value) > 0) model.set("minutes", Number(minutes.value)); else typed();
        model.save_changes();
      };
      const text = el("input", { type: "text", value: model.get("text"), style: "width:320px", placeholder: "novel.txt", "aria-label": t("text"),
        oninput: () => { clearTimeout(timer); timer = setTimeout(tell, 300); }, onchange: tell });
      const minutes = el("input", { type: "number", min: "0.5", step: "0.5", value: String(model.get("minutes")), style: "width:80px",
        "aria-label": t("minutes"), onchange: tell });
      const refusal = el("div", { class: "pgl-error", hidden: true, role: "alert", style: "margin-top:8px" });
      const ask = (what) => { refusal.hidden = true; model.send({ do: what }); };
      const advise = el("button", { type: "button", onclick: () => ask("advise") }, t("advise"));
      const start = el("button", { class: "pgl-primary", type: "button", onclick: () => {
        start.disabled = true;
        setTimeout(() => { start.disabled = false; }, 2500);
        ask("start");
      } }, t("start"));
      const command = el("pre", { class: "pgl-command" });
      const said = el("pre", { class: "pgl-command", role: "status", style: "word-break:normal" });
      const copy = el("button", { type: "button", onclick: () => copyText(model.get("command"), copy, t) }, t("copy"));
      fill(node, el("div", { class: "pgl-row" },
        el("label", { class: "pgl-label" }, `${t("text")}  `, text), el("label", { class: "pgl-label" }, `${t("minutes")}  `, minutes),
        advise, start, el("span", { class: "pgl-row pgl-push" }, copy, languageSwitch(model))),
        el("div", { class: "pgl-muted", style: "margin:6px 0" }, t("own_process")), command, said, refusal);
      node.pglParts = { refusal, command, said, advise, text, minutes, t };
      show();
    };
    const show = () => {
      const { command, said, advise, t } = node.pglParts;
      command.textContent = model.get("command");
      command.hidden = !model.get("command");
      said.textContent = model.get("busy") ? t("looking") : model.get("said");
      said.hidden = !said.textContent;
      advise.disabled = model.get("busy");
    };
    const typed = () => { // nothing else may touch what is being typed
      const { text, minutes } = node.pglParts;
      if (text.value !== model.get("text")) text.value = model.get("text");
      if (Number(minutes.value) !== model.get("minutes")) minutes.value = String(model.get("minutes"));
    };
    const message = (content) => {
      node.pglParts.refusal.textContent = content.text || "";
      node.pglParts.refusal.hidden = content.kind !== "refused";
    };
    const watched = { "change:command": show, "change:said": show, "change:busy": show, "change:text": typed, "change:minutes": typed,
      "msg:custom": message };
    for (const [name, answer] of Object.entries(watched)) model.on(name, answer);
    const off = whenLanguageChanges(model, build);
    return () => { off(); for (const [name, answer] of Object.entries(watched)) model.off(name, answer); };
  },
};
