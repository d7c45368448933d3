// Words as cards, their pieces in the card, the id below each piece.

export default {
  render({ model, el: node }) {
    root(node, "tokens");
    let [t, box, cards, tiles, news] = [];
    let timer = 0;
    const show = () => {
      const facts = model.get("facts");
      news.hidden = !(facts.refused || facts.same === false);
      news.className = facts.refused ? "pgl-error" : "pgl-notice";
      news.textContent = facts.refused || t("comes_back", { text: facts.back });
      if (facts.refused) return;
      fill(cards, model.get("rows").map((row, number) => el("span", { class: "pgl-word", style: `--pgl-piece:${colorOf(number)}`, title: row.word },
        row.pieces.map((piece, index) => el("span", { class: "pgl-piece", "data-unknown": row.unknown[index] }, el("b", {}, piece), el("small", {}, String(row.ids[index])))))));
      const figures = [["characters", facts.characters], ["words", facts.words], ["tokens", facts.tokens], ["characters_a_token", short(facts.characters_a_token, 3)],
        ["bytes_a_token", short(facts.bytes_a_token, 3)], ["unknown", facts.unknown], ["round_trip", t(facts.same ? "same" : "differs")], ["vocabulary", short(facts.vocabulary)]];
      fill(tiles, figures.map(([name, value]) => el("div", { class: "pgl-tile", "data-name": name }, el("div", { title: t(name) }, t(name)), el("div", {}, String(value)))));
    };
    const build = () => {
      t = wordsOf(model, "tokens");
      box = el("textarea", { rows: 2, value: model.get("text"), "aria-label": t("text"), oninput: () => {
        clearTimeout(timer);
        timer = setTimeout(() => { model.set("text", box.value); model.save_changes(); }, 150);
      } });
      cards = el("div", { class: "pgl-words", tabindex: 0 });
      tiles = el("div", { class: "pgl-tiles", style: "margin:10px 0 0" });
      news = el("div", { hidden: true });
      fill(node, el("div", { class: "pgl-row", style: "margin-bottom:6px" }, el("span", { class: "pgl-title" }, t("title")), el("span", { class: "pgl-push" }, languageSwitch(model))), box, cards, news, tiles);
      show();
    };
    model.on("change:rows change:facts", show);
    const off = whenLanguageChanges(model, build);
    return () => { off(); model.off("change:rows change:facts", show); clearTimeout(timer); };
  },
};
