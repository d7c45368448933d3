// Where a launch runs: a back end, and this machine, the lines of a hosts file, or the servers of a rank table.

class Target {
  constructor(model, node) {
    this.model = model;
    this.node = root(node, "target");
    this.timers = {};
    const typed = ["backend", "nproc", "several", "hosts_text", "hosts_file", "table_file", "node_rank", "master_addr", "entry"];
    const told = ["machines", "file_state", "errors", "entry_devices"];
    this.names = [...typed, ...told].map((name) => `change:${name}`).join(" ");
    this.call = () => this.show();
    this.receive = (content) => { this.refusal.textContent = content.text || ""; this.refusal.hidden = content.kind !== "refused"; };
    model.on(this.names, this.call);
    model.on("msg:custom", this.receive);
    this.unbuild = whenLanguageChanges(model, () => this.build());
  }

  close() {
    this.model.off(this.names, this.call);
    this.model.off("msg:custom", this.receive);
    this.unbuild();
  }

  set(name, value) {
    this.refusal.hidden = true;
    this.model.set(name, value);
    this.model.save_changes();
  }

  // A box whose text goes to the kernel a moment after it was typed; `read` and `write` are for what is not one trait's text.
  box(tag, name, attributes, write = (text) => this.set(name, text)) {
    const send = () => { clearTimeout(this.timers[name]); delete this.timers[name]; write(input.value); };
    const input = el(tag, { type: "text", "data-name": name, spellcheck: "false", ...attributes, onchange: send,
      oninput: () => { clearTimeout(this.timers[name]); this.timers[name] = setTimeout(send, 250); } });
    return input;
  }

  ask(what, more = {}) { this.refusal.hidden = true; this.model.send({ do: what, ...more }); }

  picker(name, take, several = false) {
    const file = el("input", { type: "file", hidden: true, multiple: several, "data-name": name, onchange: async () => {
      await take([...file.files]);
      file.value = "";
    } });
    return [el("button", { type: "button", onclick: () => file.click() }, this.t(name)), file];
  }

  build() {
    const t = wordsOf(this.model, "target");
    const model = this.model;
    this.t = t;
    this.refusal = el("div", { class: "pgl-error", hidden: true, role: "alert", style: "margin-top:8px" });
    this.backend = el("select", { style: "width:auto", "data-name": "backend", onchange: () => this.set("backend", this.backend.value) },
      model.get("backends").map((name) => el("option", { value: name }, t(`backend_${name}`))));
    this.where = el("select", { style: "width:auto", "data-name": "several", "aria-label": t("machines"), onchange: () => this.set("several", this.where.value === "hosts") },
      ["here", "hosts"].map((name) => el("option", { value: name }, t(`machines_${name}`))));
    this.nproc = this.box("input", "nproc", { type: "number", min: 1, style: "width:84px", placeholder: t("as_layout") },
      (text) => this.set("nproc", Math.max(0, Math.floor(Number(text)) || 0)));
    this.nprocLabel = el("span");
    this.count = el("label", { class: "pgl-label" }, this.nprocLabel, this.nproc);
    this.hint = el("div", { class: "pgl-muted", style: "margin-top:6px" });
    fill(this.node, el("div", { class: "pgl-row" }, el("label", { class: "pgl-label" }, t("run_on"), this.backend), this.where, this.count,
      el("span", { class: "pgl-row pgl-push" }, languageSwitch(model))), this.hint, this.hostsPart(), this.tablePart(), this.filePart(), this.refusal);
    this.show();
  }

  hostsPart() {
    const t = this.t;
    this.hosts = this.box("textarea", "hosts_text", { rows: 4, class: "pgl-lines", placeholder: "node-a slots=8\nnode-b slots=8", "aria-label": t("machines_hosts") });
    this.hostsError = el("div", { class: "pgl-error", role: "alert" });
    this.hostsTold = el("div", { class: "pgl-muted", role: "status" });
    this.hostsBox = el("div", { class: "pgl-part" }, el("div", { class: "pgl-row" }, el("span", { class: "pgl-label" }, t("hosts_lines")),
      this.picker("choose_file", async ([file]) => { if (file) { const text = await file.text(); this.hosts.value = text; this.set("hosts_text", text); } })),
      this.hosts, this.hostsError, this.hostsTold);
    return this.hostsBox;
  }

  tablePart() {
    const t = this.t;
    const typed = () => this.set("entry", { server: this.server.value, devices: this.devices.value, addresses: this.addresses.value });
    this.server = this.box("input", "server", { placeholder: "10.0.0.1" }, typed);
    this.devices = this.box("input", "devices", { placeholder: t("devices_all") }, typed);
    this.addresses = this.box("textarea", "addresses", { rows: 3, class: "pgl-lines", placeholder: "address_0=192.168.100.101\naddress_1=192.168.101.101" }, typed);
    this.servers = el("table", { class: "pgl-table" });
    this.tableTold = el("div", { class: "pgl-muted", role: "status" });
    this.tableError = el("div", { class: "pgl-error", role: "alert" });
    this.entryError = el("div", { class: "pgl-error", role: "alert" });
    this.entryTold = el("div", { class: "pgl-muted", role: "status" });
    this.add = el("button", { type: "button", "data-name": "add", onclick: () => { typed(); this.ask("add_server"); } }, t("add_server"));
    this.tableBox = el("div", { class: "pgl-part" }, el("div", { class: "pgl-scroll" }, this.servers), this.tableTold, this.tableError,
      el("div", { class: "pgl-entry" },
        el("label", { class: "pgl-field" }, el("span", {}, t("server")), this.server), el("label", { class: "pgl-field" }, el("span", {}, t("devices")), this.devices),
        el("label", { class: "pgl-field" }, el("span", {}, t("addresses")), this.addresses)),
      this.entryError, this.entryTold,
      el("div", { class: "pgl-row" }, this.add, this.picker("add_tables", async (files) => {
        const read = await Promise.all(files.map(async (file) => ({ name: file.name, text: await file.text() })));
        if (read.length) this.ask("add_tables", { files: read });
      }, true)));
    return this.tableBox;
  }

  filePart() {
    const t = this.t;
    this.file = this.box("input", "file", { style: "width:260px" }, (text) => this.set(this.model.get("backend") === "ranktable" ? "table_file" : "hosts_file", text));
    this.fileTold = el("span", { class: "pgl-muted", role: "status" });
    this.fileError = el("div", { class: "pgl-error", role: "alert" });
    this.replace = el("button", { type: "button", onclick: () => this.ask("write", { replace: true }) }, t("replace"));
    this.open = el("button", { type: "button", onclick: () => this.ask("open") }, t("open"));
    this.node_rank = el("select", { style: "width:auto", "data-name": "node_rank", onchange: () => this.set("node_rank", Number(this.node_rank.value)) });
    this.nodeLabel = el("label", { class: "pgl-label" }, t("this_is"), this.node_rank);
    this.master = this.box("input", "master_addr", { style: "width:150px", placeholder: t("by_name") });
    this.masterLabel = el("label", { class: "pgl-label" }, t("master"), this.master);
    this.fileBox = el("div", { class: "pgl-part" },
      el("div", { class: "pgl-row" }, el("label", { class: "pgl-label" }, t("file"), this.file), this.fileTold, this.replace, this.open), this.fileError,
      el("div", { class: "pgl-row" }, this.nodeLabel, this.masterLabel));
    return this.fileBox;
  }

  // Nothing may touch what is being typed.
  put(input, value) {
    if (!(input.dataset.name in this.timers) && input.value !== value) input.value = value;
  }

  show() {
    const [model, t] = [this.model, this.t];
    const [backend, machines, errors] = [model.get("backend"), model.get("machines"), model.get("errors")];
    const table = backend === "ranktable";
    const hosts = !table && model.get("several");
    this.backend.value = backend;
    this.where.value = hosts ? "hosts" : "here";
    this.where.hidden = this.count.hidden = table;
    this.nprocLabel.textContent = t(hosts ? "nproc_lines" : "nproc");
    this.put(this.nproc, model.get("nproc") ? String(model.get("nproc")) : "");
    this.hint.textContent = t(`hint_${backend}${hosts ? "_hosts" : ""}`);
    this.hostsBox.hidden = !hosts;
    this.tableBox.hidden = !table;
    this.fileBox.hidden = !hosts && !table;
    this.put(this.hosts, model.get("hosts_text"));
    for (const name of ["server", "devices", "addresses"]) this.put(this[name], model.get("entry")[name] || "");
    this.put(this.file, model.get(table ? "table_file" : "hosts_file"));
    this.put(this.master, model.get("master_addr"));
    for (const [node, key] of [[this.hostsError, "hosts"], [this.tableError, "table"], [this.entryError, "entry"], [this.fileError, "file"]]) {
      node.textContent = errors[key] || "";
      node.hidden = !errors[key];
    }
    const ranks = machines.reduce((sum, one) => sum + one.ranks, 0);
    const told = machines.length ? t("told", { machines: machines.length, ranks }) : "";
    this.hostsTold.textContent = told;
    this.tableTold.textContent = told || t("no_server");
    this.entryTold.textContent = model.get("entry_devices") ? t("entry", { devices: model.get("entry_devices") }) : "";
    this.add.disabled = !model.get("entry_devices");
    this.showServers(table ? machines : []);
    this.showFile(machines, table);
  }

  showServers(machines) {
    const t = this.t;
    this.servers.hidden = !machines.length;
    fill(this.servers, el("tr", {}, [t("ranks"), t("server"), t("devices"), ""].map((text) => el("th", {}, text))), machines.map((one, place) => el("tr", {},
      el("td", {}, one.ranks > 1 ? `${one.first}–${one.first + one.ranks - 1}` : String(one.first)), el("td", {}, one.name), el("td", {}, one.devices),
      el("td", {}, el("button", { type: "button", class: "pgl-quiet", title: t("remove"), "aria-label": `${t("remove")} ${one.name}`, onclick: () => this.ask("remove", { place }) }, "✕")))));
  }

  showFile(machines, table) {
    const [model, t] = [this.model, this.t];
    const state = model.get("file_state");
    this.fileTold.textContent = state ? t(`file_${state}`) : "";
    this.replace.hidden = this.open.hidden = state !== "other";
    const mpirun = model.get("backend") === "mpirun";
    this.nodeLabel.hidden = mpirun || machines.length < 2;
    this.masterLabel.hidden = table || machines.length < 2;
    const options = [[-1, t("by_name")], ...machines.map((one, place) => [place, `${place}: ${one.name}`])];
    fill(this.node_rank, options.map(([value, text]) => el("option", { value: String(value) }, text)));
    this.node_rank.value = String(model.get("node_rank") < machines.length ? model.get("node_rank") : -1);
  }
}

export default {
  render({ model, el: node }) {
    const form = new Target(model, node);
    return () => form.close();
  },
};
