// A run's name, the command that starts it, and the button that does.

export default {
  render({ model, el: node }) {
    root(node, "launch");
    const build = () => {
      const t = wordsOf(model, "launch");
      const name = el("input", { type: "text", value: model.get("name"), style: "width:180px", "aria-label": t("name"),
        onchange: () => { model.set("name", name.value); model.save_changes(); } });
      const refusal = el("div", { class: "pgl-error", hidden: true, role: "alert", style: "margin-top:8px" });
      const start = el("button", { class: "pgl-primary pgl-start", type: "button", onclick: () => {
        refusal.hidden = true;
        start.disabled = true;
        setTimeout(() => { start.disabled = false; }, 2500);
        model.send({ do: "start" });
      } }, t("start"));
      const command = el("pre", { class: "pgl-command" }, model.get("command"));
      const copy = el("button", { type: "button", onclick: () => copyText(model.get("command"), copy, t) }, t("copy"));
      fill(node, el("div", { class: "pgl-row" },
        el("label", { class: "pgl-label" }, `${t("name")}  ${model.get("folder")}/`, name), start,
        el("span", { class: "pgl-muted" }, t("own_process")), el("span", { class: "pgl-row pgl-push" }, copy, languageSwitch(model))),
        command, refusal);
      node.pglParts = { refusal, command };
    };
    const commandChanged = () => { node.pglParts.command.textContent = model.get("command"); };
    const message = (content) => {
      node.pglParts.refusal.textContent = content.text || "";
      node.pglParts.refusal.hidden = content.kind !== "refused";
    };
    model.on("change:command", commandChanged);
    model.on("msg:custom", message);
    const off = whenLanguageChanges(model, build);
    return () => { off(); model.off("change:command", commandChanged); model.off("msg:custom", message); };
  },
};
