// A run's name, the command that starts it, its buttons, and what the command said: the plan of a dry run, or its output.

export default {
  render({ model, el: node }) {
    root(node, "launch");
    const build = () => {
      const t = wordsOf(model, "launch");
      const name = el("input", { type: "text", value: model.get("name"), style: "width:180px", "aria-label": t("name"),
        onchange: () => { model.set("name", name.value); model.save_changes(); } });
      const refusal = el("div", { class: "pgl-error", hidden: true, role: "alert", style: "margin-top:8px" });
      const ask = (what) => { refusal.hidden = true; model.send({ do: what }); };
      const start = el("button", { class: "pgl-primary pgl-start", type: "button", onclick: () => {
        node.pglParts.pressed = true; // until the command runs or was refused, and not for ever
        setTimeout(() => { node.pglParts.pressed = false; show(); }, 2500);
        show();
        ask("start");
      } }, t("start"));
      const dry = el("button", { type: "button", title: t("dry_run_hint"), onclick: () => ask("dry_run") }, t("dry_run"));
      const stop = el("button", { class: "pgl-danger", type: "button", title: t("stop_hint"), onclick: () => ask("stop") });
      const command = el("pre", { class: "pgl-command" });
      const said = el("pre", { class: "pgl-command pgl-said", role: "status" });
      const copy = el("button", { type: "button", onclick: () => copyText(model.get("command"), copy, t) }, t("copy"));
      fill(node, el("div", { class: "pgl-row" },
        el("label", { class: "pgl-label" }, `${t("name")}  ${model.get("folder")}/`, name), dry, start, stop,
        el("span", { class: "pgl-muted" }, t("own_process")), el("span", { class: "pgl-row pgl-push" }, copy, languageSwitch(model))),
        command, refusal, said);
      node.pglParts = { refusal, command, said, start, dry, stop, t };
      show();
    };
    const show = () => {
      const { command, said, start, dry, stop, pressed, t } = node.pglParts;
      command.textContent = model.get("command");
      const low = said.scrollHeight - said.scrollTop - said.clientHeight < 30;
      said.textContent = model.get("busy") ? t("planning") : model.get("said");
      said.hidden = !said.textContent;
      if (low) said.scrollTop = model.get("running") ? said.scrollHeight : said.scrollTop;
      dry.disabled = model.get("busy") || model.get("running");
      start.disabled = Boolean(pressed) || model.get("running");
      stop.hidden = !model.get("running");
      stop.textContent = t(model.get("stopping") ? "stop_at_once" : "stop");
    };
    const message = (content) => {
      node.pglParts.refusal.textContent = content.text || "";
      node.pglParts.refusal.hidden = content.kind !== "refused";
    };
    const names = "change:command change:said change:busy change:running change:stopping";
    model.on(names, show);
    model.on("msg:custom", message);
    const off = whenLanguageChanges(model, build);
    return () => { off(); model.off(names, show); model.off("msg:custom", message); };
  },
};
