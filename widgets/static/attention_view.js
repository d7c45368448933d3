// All heads of a layer as small pictures, the chosen one large, and over the text the row that is pointed at.

const MEAN = -1;
const SMALL = 76;

export default {
  render({ model, el: node }) {
    root(node, "attention");
    let [t, box, note, layers, heads, told, chips, large, tip, legend] = [];
    let painters = [];
    let [timer, pointed, all] = [0, -1, new Uint16Array(0)];
    const set = (name, value) => { model.set(name, value); model.save_changes(); };
    const last = () => model.get("layer") === model.get("shape")[0] - 1;
    const unpack = () => {
      const view = model.get("data");
      all = new Uint16Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
    };
    // (query, key) → probability, of a head of the chosen layer
    const weights = (head) => {
      const [, count, seq] = model.get("shape");
      const start = (which, query, key) => all[((model.get("layer") * count + which) * seq + query) * seq + key] / 65535;
      if (head !== MEAN) return (query, key) => start(head, query, key);
      return (query, key) => { let sum = 0; for (let which = 0; which < count; which += 1) sum += start(which, query, key); return sum / count; };
    };
    const row = () => (pointed >= 0 ? pointed : model.get("row") >= 0 ? model.get("row") : model.get("tokens").length - 1);
    const squares = (context, weight, left, top, cell, seq) => {
      context.fillStyle = style(node, "--pgl-accent");
      const gap = cell > 8 ? 1 : 0;
      for (let query = 0; query < seq; query += 1) {
        for (let key = 0; key <= query; key += 1) {
          context.globalAlpha = Math.sqrt(weight(query, key));
          context.fillRect(left + key * cell, top + query * cell, cell - gap, cell - gap);
        }
      }
      context.globalAlpha = 1;
    };
    const drawSmall = (canvas, head) => {
      const seq = model.get("tokens").length;
      const [context, width] = pen(canvas, SMALL);
      squares(context, weights(head), 0, 0, Math.min(width, SMALL) / seq, seq);
    };
    let place = { left: 0, top: 0, cell: 1 };
    const drawLarge = () => {
      const tokens = model.get("tokens");
      const font = "12px system-ui, 'Noto Sans CJK SC', sans-serif";
      let context = large.getContext("2d");
      context.font = font;
      const margin = Math.min(110, 10 + Math.max(...tokens.map((token) => context.measureText(token).width)));
      const cell = Math.max(6, Math.min(30, ((large.clientWidth || 500) - margin - 4) / tokens.length));
      place = { left: margin, top: margin, cell };
      [context] = pen(large, Math.ceil(margin + cell * tokens.length + 4));
      [context.font, context.textBaseline] = [font, "middle"];
      const size = Math.min(12, cell - 1);
      if (size < 12) context.font = font.replace("12px", `${size}px`);
      const chosen = row();
      tokens.forEach((token, number) => {
        context.fillStyle = style(node, number === chosen ? "--pgl-fg" : "--pgl-muted");
        context.textAlign = "right";
        context.fillText(token, margin - 6, margin + (number + 0.5) * cell, margin - 6);
        context.fillStyle = style(node, "--pgl-muted");
        context.save();
        context.translate(margin + (number + 0.5) * cell, margin - 6);
        const upright = context.measureText(token).width < cell;  // as most Chinese pieces
        if (!upright) context.rotate(-Math.PI / 2);
        context.textAlign = upright ? "center" : "left";
        context.fillText(token, 0, upright ? -size / 2 : 0, margin - 6);
        context.restore();
      });
      squares(context, weights(model.get("head")), margin, margin, cell, tokens.length);
      context.strokeStyle = style(node, "--pgl-fg");
      context.strokeRect(margin - 1, margin + chosen * cell - 1, (chosen + 1) * cell + 1, cell + 1);
      large.dataset.cells = String((tokens.length * (tokens.length + 1)) / 2);
    };
    const showRow = () => {
      const [tokens, chosen, weight] = [model.get("tokens"), row(), weights(model.get("head"))];
      told.textContent = t(last() ? "row_query" : "row_token", { token: tokens[chosen] });
      [...chips.children].forEach((chip, number) => {
        const value = number <= chosen ? weight(chosen, number) : 0;
        chip.style.setProperty("--pgl-weight", `${(100 * Math.sqrt(value)).toFixed(1)}%`);
        chip.setAttribute("aria-pressed", String(number === chosen));
        chip.toggleAttribute("data-later", number > chosen);
        chip.lastChild.textContent = number <= chosen ? `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %` : "·";
      });
      if (large.isConnected) drawLarge();
    };
    const point = (number) => { if (number !== pointed) { pointed = number; showRow(); } };
    const hold = (number) => { pointed = -1; set("row", number === model.get("row") ? -1 : number); };
    const choose = () => {
      [...layers.children].forEach((button, number) => button.setAttribute("aria-pressed", String(number === model.get("layer"))));
      [...heads.children].forEach((button, number) => button.setAttribute("aria-pressed", String(number - 1 === model.get("head"))));
      legend.textContent = `${t(last() ? "asks" : "looks")} ${t("shade")}`;
      painters.forEach((one) => one.ask());
      showRow();
    };
    const at = (event) => {
      const box = large.getBoundingClientRect();
      const count = (offset) => Math.floor(offset / place.cell);
      return [count(event.clientY - box.top - place.top), count(event.clientX - box.left - place.left)];
    };
    const move = (event) => {
      const [query, key] = at(event);
      const tokens = model.get("tokens");
      const inside = query >= 0 && query < tokens.length;
      point(inside ? query : -1);
      tip.hidden = !(inside && key >= 0 && key <= query);
      if (tip.hidden) return;
      tip.textContent = `${tokens[query]} → ${tokens[key]}  ${(100 * weights(model.get("head"))(query, key)).toFixed(1)} %`;
      tip.style.left = `${place.left}px`;
      tip.style.top = "0";
    };
    const leave = () => { tip.hidden = true; point(-1); };
    const stopPainting = () => { painters.forEach((one) => one.stop()); painters = []; };
    const fillIn = () => {
      unpack();
      pointed = -1;
      stopPainting();
      const [count, each] = model.get("shape");
      fill(layers, Array.from({ length: count }, (_, number) => el("button", { type: "button", title: t("block", { number }), onclick: () => set("layer", number) },
        number === count - 1 ? t("query_layer") : String(number))));
      const canvases = [];
      fill(heads, Array.from({ length: each + 1 }, (_, number) => {
        const canvas = el("canvas", { "aria-hidden": "true" });
        canvases.push([canvas, number - 1]);
        return el("button", { type: "button", class: "pgl-head", onclick: () => set("head", number - 1) }, canvas, el("span", {}, number ? `${t("head")} ${number - 1}` : t("mean")));
      }));
      fill(chips, model.get("tokens").map((token, number) => el("button", { type: "button", class: "pgl-chip", onmouseenter: () => point(number), onfocus: () => point(number), onblur: () => point(-1), onclick: () => hold(number) },
        el("b", {}, token), el("small", {}))));
      painters = canvases.map(([canvas, head]) => painter(canvas, () => drawSmall(canvas, head)));
      painters.push(painter(large, drawLarge));
      if (box !== document.activeElement) box.value = model.get("text");
      choose();
    };
    const showNote = () => { note.textContent = model.get("note"); note.hidden = !model.get("note"); };
    const build = () => {
      t = wordsOf(model, "attention");
      box = el("textarea", { rows: 2, "aria-label": t("text"), value: model.get("text"), oninput: () => {
        clearTimeout(timer);
        timer = setTimeout(() => model.send({ do: "text", text: box.value }), 500);
      } });
      note = el("div", { class: "pgl-error", hidden: true, role: "alert", style: "margin-top:6px" });
      [layers, heads, chips] = [el("span", { class: "pgl-choice pgl-tabs" }), el("div", { class: "pgl-heads" }), el("div", { class: "pgl-chips", onmouseleave: () => point(-1) })];
      [told, legend] = [el("div", { class: "pgl-charttitle", "aria-live": "polite" }), el("div", { class: "pgl-muted" })];
      [large, tip] = [el("canvas", { onmousemove: move, onmouseleave: leave, onclick: (event) => { const [query] = at(event); if (query >= 0 && query < model.get("tokens").length) hold(query); } }), el("div", { class: "pgl-tip", hidden: true })];
      fill(node, el("div", { class: "pgl-row", style: "margin-bottom:6px" }, el("span", { class: "pgl-title" }, t("title")), el("span", { class: "pgl-push" }, languageSwitch(model))), box, note,
        el("div", { class: "pgl-row" }, el("span", { class: "pgl-muted" }, t("layer")), layers), told, chips, el("div", { class: "pgl-muted", style: "margin-bottom:10px" }, t("hover")),
        el("div", { class: "pgl-sides" }, el("div", {}, el("div", { class: "pgl-charttitle" }, t("all_heads")), heads), el("div", { class: "pgl-chart" }, large, tip, legend)));
      fillIn();
      showNote();
    };
    const wired = [["change:data", fillIn], ["change:layer change:head", choose], ["change:row", showRow], ["change:note", showNote]];
    wired.forEach(([names, act]) => model.on(names, act));
    const off = whenLanguageChanges(model, build);
    return () => { off(); clearTimeout(timer); stopPainting(); wired.forEach(([names, act]) => model.off(names, act)); };
  },
};
