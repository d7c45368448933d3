// Words as cards, their pieces in the card, the id below each piece; one tokenizer, or two side by side.

export default {
  render({ model, el: node }) {
    root(node, "tokens");
    let [t, box, parts, other, news] = [];
    let timer = 0;
    const tile = (name, value) => el("div", { class: "pgl-tile", "data-name": name }, el("div", { title: t(name) }, t(name)), el("div", {}, String(value)));
    const cards = (rows) => el("div", { class: "pgl-words", tabindex: 0 }, rows.map((row, number) => el("span", { class: "pgl-word", style: `--pgl-piece:${colorOf(number)}`, title: row.word },
      row.pieces.map((piece, index) => el("span", { class: "pgl-piece", "data-unknown": row.unknown[index] }, el("b", {}, piece), el("small", {}, String(row.ids[index])))))));
    const figures = (facts) => el("div", { class: "pgl-tiles", style: "margin:10px 0 0" }, tile("characters", facts.characters), tile("words", facts.words), tile("tokens", facts.tokens),
      tile("characters_a_token", short(facts.characters_a_token, 3)), tile("bytes_a_token", short(facts.bytes_a_token, 3)), tile("unknown", facts.unknown),
      tile("round_trip", t(facts.same ? "same" : "differs")), tile("vocabulary", short(facts.vocabulary)));
    const partOf = ({ name, rows, facts }, alone) => {
      if (facts.refused) return el("div", { class: "pgl-error" }, facts.refused);
      return el("div", { class: alone ? null : "pgl-column" }, alone ? null : el("b", {}, name), cards(rows),
        facts.same ? null : el("div", { class: "pgl-notice" }, t("comes_back", { text: facts.back })), figures(facts));
    };
    const show = () => {
      const cuts = model.get("cuts");
      parts.className = cuts.length > 1 ? "pgl-columns" : "";
      fill(parts, (cuts.some((one) => one.facts.refused) ? cuts.slice(0, 1) : cuts).map((one) => partOf(one, cuts.length < 2)));
      news.hidden = true;
    };
    const compare = () => { news.hidden = true; model.send({ do: "compare", name: other.value }); };
    const build = () => {
      t = wordsOf(model, "tokens");
      box = el("textarea", { rows: 2, value: model.get("text"), "aria-label": t("text"), oninput: () => {
        clearTimeout(timer);
        timer = setTimeout(() => { model.set("text", box.value); model.save_changes(); }, 150);
      } });
      parts = el("div");
      news = el("div", { class: "pgl-error", hidden: true, role: "alert" });
      const cuts = model.get("cuts");
      other = el("input", { type: "text", style: "width:200px", placeholder: t("other_hint"), value: cuts.length > 1 ? cuts[1].name : "",
        onchange: compare, onkeydown: (event) => { if (event.key === "Enter") { event.stopPropagation(); compare(); } } });
      fill(node, el("div", { class: "pgl-row", style: "margin-bottom:6px" }, el("span", { class: "pgl-title" }, t("title")),
        el("span", { class: "pgl-row pgl-push" }, el("label", { class: "pgl-label" }, t("other"), other), languageSwitch(model))), box, news, parts);
      show();
    };
    const refused = (message) => { if (message.kind === "refused") { news.textContent = message.text; news.hidden = false; } };
    model.on("change:cuts", show);
    model.on("msg:custom", refused);
    const off = whenLanguageChanges(model, build);
    return () => { off(); model.off("change:cuts", show); model.off("msg:custom", refused); clearTimeout(timer); };
  },
};
