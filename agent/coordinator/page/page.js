const LEAST_BETWEEN_POLLS = 1_000;
// The coordinator answers a waiting poll after 30 s.
const POLL_LIMIT = 45_000;
const LONGEST_BACK_OFF = 30_000;
const LEAST_BETWEEN_ANNOUNCEMENTS = 5_000;
const ROWS_AT_FIRST = 200;
const ROWS_MORE = 300;
const MOST_LOG_LINES = 2_000;
const TAIL = 200;

const $ = (id) => document.getElementById(id);

// The one way to make an element. Strings among the children are text, never markup.
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Characters that would hide or turn round what stands beside them are shown as replaced.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
const plain = (text) => String(text ?? "").replace(/[\t\n]/g, " ").replace(UNSEEN, "\ufffd");

// proto3 JSON: 64-bit numbers are strings, and what is absent is 0.
const number = (value) => Number(value ?? 0) || 0;
const named = (value, prefix) => String(value ?? "").replace(prefix, "").toLowerCase().replaceAll("_", " ");

const figures = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const rough = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

const percent = (value) => `${rough.format(value)}\u00a0%`;

function cpus(milli) {
  const value = milli / 1000;
  return (value < 100 ? figures : rough).format(value);
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${(value < 10 ? figures : rough).format(value)} ${units[unit]}`;
}

function span(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

// By the coordinator's clock, since this machine's may be wrong.
const ago = (stamp) => (stamp ? `${span((Date.now() + app.skew - Date.parse(stamp)) / 1000)} ago` : "");
const clock = (date) => date.toLocaleTimeString("en-GB");
const many = (count, one, more = `${one}s`) => `${figures.format(count)} ${count === 1 ? one : more}`;
const sum = (list, field) => list.reduce((total, item) => total + number(item[field]), 0);
const capital = (word) => word[0].toUpperCase() + word.slice(1);
const listed = (words, between = ", ") => words.filter(Boolean).join(between);
const byName = new Intl.Collator("en", { numeric: true }).compare;


const app = {
  view: null,
  knownAt: null,
  skew: 0,
  route: { view: "jobs", name: "", words: new URLSearchParams() },
  content: null,
  // Until the coordinator answers 403 to somebody who would.
  mayAct: true,
};

// What is in a state: a tone, which gives shape and colour, and words, which say the same.
const PRESENCE = {
  PRESENCE_HERE: ["good", "Here"],
  PRESENCE_AWAY: ["warn", "Away"],
  PRESENCE_UNREACHABLE: ["bad", "Unreachable"],
};

const PHASE = {
  PHASE_WAITING: ["warn", "Waiting"],
  PHASE_STARTING: ["busy", "Starting"],
  PHASE_READY: ["good", "Ready"],
  PHASE_STOPPING: ["busy", "Stopping"],
  PHASE_ABANDONED: ["bad", "Abandoned"],
  PHASE_FINISHED: ["quiet", "Finished"],
  PHASE_FAILED: ["bad", "Failed"],
  PHASE_STOPPED: ["quiet", "Stopped"],
  PHASE_REFUSED: ["bad", "Refused"],
  PHASE_GONE: ["quiet", "Gone"],
};

const JOB_STATES = {
  ready: ["good", "Ready"],
  starting: ["busy", "Starting"],
  updating: ["busy", "Updating"],
  waiting: ["warn", "Waiting"],
  back: ["warn", "Rolling back"],
  failed: ["bad", "Failed"],
  stuck: ["bad", "Update failed"],
  finished: ["quiet", "Finished"],
  stopped: ["quiet", "Stopped"],
};

const UNKNOWN = ["quiet", "Unknown"];
// Whatever it is called: "constructor" is in no table.
const lookUp = (table, name, otherwise) => (Object.hasOwn(table, name ?? "") ? table[name] : otherwise);
const presence = (node) => lookUp(PRESENCE, node.presence, UNKNOWN);
const phase = (instance) => lookUp(PHASE, instance.phase, UNKNOWN);

function jobState(job) {
  const [ready, wanted] = [number(job.ready), number(job.wanted)];
  if (job.stopped) return JOB_STATES.stopped;
  if (job.rollout === "ROLLOUT_FAILED") return JOB_STATES.stuck;
  if (job.rollout === "ROLLOUT_ROLLING_BACK") return JOB_STATES.back;
  if (number(job.waiting)) return JOB_STATES.waiting;
  if (job.rollout === "ROLLOUT_UNDER_WAY") return JOB_STATES.updating;
  if (job.kind === "batch" && number(job.failed)) return JOB_STATES.failed;
  if (job.kind === "batch" && number(job.finished) >= wanted) return JOB_STATES.finished;
  return ready < wanted ? JOB_STATES.starting : JOB_STATES.ready;
}

// What a cell holds is described by data first: it is compared with what is shown, and built only when it differs.
const linked = (view, name = "") => ({ href: `#/${view}/${encodeURIComponent(name)}`, text: plain(name) });
const small = (text) => ({ small: plain(text) });
const badge = ([tone, text]) => ({ tone, text });
const time = (stamp) => ({ stamp, text: ago(stamp) });
const chips = (words) => (words.length ? [{ chips: words }] : []);
const when = (holds, ...parts) => (holds ? parts : []);

function build(part) {
  if (typeof part === "string") return document.createTextNode(plain(part));
  if (part.href) return el("a", { href: part.href }, part.text);
  if (part.tone) return el("span", { class: "state", "data-tone": part.tone }, part.text);
  if (part.stamp) return el("time", { datetime: part.stamp, title: plain(part.stamp) }, part.text);
  if (part.bar) return bar(part.bar);
  if (part.chips) return el("ul", { class: "chips" }, ...part.chips.map((chip) => el("li", {}, plain(chip))));
  return el("span", { class: "small" }, part.small ?? "");
}

function fill(node, parts) {
  const key = JSON.stringify(parts);
  if (node.shown === key) return;
  const focused = node.contains(document.activeElement);
  node.shown = key;
  node.replaceChildren(...parts.map(build));
  if (focused) node.querySelector("a, button")?.focus();
}

const AMOUNTS = {
  cpu: { field: "cpuMilli", name: "CPU", show: (value) => `${cpus(value)} CPUs`, bare: cpus },
  memory: { field: "memory", name: "Memory", show: bytes, bare: bytes },
};

function amounts(capacity, of) {
  const take = (part) => number(capacity?.[part]?.[AMOUNTS[of].field]);
  const allocatable = take("allocatable");
  const reserved = take("reserved");
  return {
    of,
    total: Math.max(take("total"), allocatable + reserved),
    reserved,
    allocatable,
    allocated: take("allocated"),
    used: take("used"),
  };
}

// A picture of numbers that stand beside it, so it is not read aloud.
function bar({ total, reserved, allocated, used }) {
  const piece = (name, value) => {
    const made = el("span", { class: `bar-${name}` });
    made.style.width = `${total ? Math.min(100, (value / total) * 100) : 0}%`;
    return made;
  };
  const pieces = [piece("reserved", reserved), piece("allocated", allocated), piece("used", used)];
  return el("span", { class: "bar", "aria-hidden": "true" }, ...pieces);
}

function amountCell(capacity, of) {
  const has = amounts(capacity, of);
  if (!has.total) return ["\u2013"];
  const { bare, show } = AMOUNTS[of];
  return [{ bar: has }, small(`${bare(has.allocated)} of ${show(has.allocatable)}`), small(`${bare(has.used)} used`)];
}

const PRESSURES = [["cpuPressure", "CPU"], ["memoryPressure", "memory"], ["ioPressure", "I/O"]];

function pressure(capacity) {
  const known = PRESSURES.filter(([field]) => typeof capacity?.[field] === "number");
  if (!known.length && capacity?.total) return "not counted by the kernel";
  return known.map(([field, name]) => `${name} ${percent(capacity[field])}`).join(", ");
}

const attributeList = ({ attributes = {} }) =>
  Object.entries(attributes).map(([name, value]) => `${name}=${value}`).sort(byName);

const namespaceOf = (item) => item.namespace || "default";
const draining = (node) => (node.drainOverdue ? "Draining, overdue" : "Draining");
const SHORTAGES = { cpu: "Short of CPU", memory: "Short of memory", io: "Short of I/O" };
const shortages = (node) => (node.pressure ?? []).map(({ of }) => badge(["busy", lookUp(SHORTAGES, of, "Short")]));
const nodeBadges = (node) => [badge(presence(node)), ...when(node.draining, badge(["busy", draining(node)])), ...shortages(node)];
const isReady = (task) => task.phase === "PHASE_READY";
const onNode = (task) => (task.state ? `on its node: ${named(task.state, "STATE_")}` : "");
const isStable = (job) => number(job.stable) === number(job.version);
const stableVersion = (job) => (number(job.stable) ? `stable: ${number(job.stable)}` : "none is stable yet");

// A column says what its cell holds; the first is the row's heading.
const COLUMNS = {
  jobs: [
    ["Job", (job) => [linked("jobs", job.name), ...when(namespaceOf(job) !== "default", small(job.namespace))]],
    ["State", (job) => [badge(jobState(job))]],
    ["Ready", (job) => readiness(job)],
    ["Version", (job) => [String(number(job.version)), ...when(!isStable(job), small(stableVersion(job)))]],
    ["Runs", (job) => [job.runs ?? "", small(kindOf(job))]],
    ["Why it waits", (job) => [job.sentence ?? ""]],
  ],
  nodes: [
    ["Node", (node) => [linked("nodes", node.name)]],
    ["State", (node) => nodeBadges(node)],
    ["Tasks", (node) => [figures.format(number(node.instances))]],
    ["CPU allocated", (node) => amountCell(node.capacity, "cpu")],
    ["Memory allocated", (node) => amountCell(node.capacity, "memory")],
    ["Pressure", (node) => [small(pressure(node.capacity))]],
    ["Attributes", (node) => chips(attributeList(node))],
  ],
  tasks: [
    ["Task", (task) => [task.name ? linked("tasks", task.name) : "not placed yet"]],
    ["State", (task) => [badge(phase(task)), ...when(!isReady(task), small(onNode(task)))]],
    ["Job", (task) => [linked("jobs", task.job)]],
    ["Slot", (task) => [task.slot ?? "", small(`version ${number(task.version)}`)]],
    ["Node", (task) => [task.node ? linked("nodes", task.node) : "\u2013"]],
    ["Started", (task) => [task.started ? time(task.started) : "\u2013"]],
    ["Why", (task) => [task.sentence ?? ""]],
  ],
  versions: [
    ["Version", (version) => [String(number(version.version))]],
    ["Tasks", (version) => [figures.format(number(version.instances))]],
    ["Runs", (version) => [runsOf(version.spec)]],
  ],
};

function readiness(job) {
  const rest = [["starting", "starting"], ["waiting", "waiting"], ["finished", "finished"], ["failed", "failed"]];
  const others = rest.filter(([field]) => number(job[field])).map(([field, word]) => `${number(job[field])} ${word}`);
  return [`${number(job.ready)} of ${number(job.wanted)}`, ...(others.length ? [small(others.join(", "))] : [])];
}

const KINDS = { replicas: "replicas", one_per_node: "one per node", batch: "batch" };
const kindOf = (job) => listed([lookUp(KINDS, job.kind, ""), number(job.priority) && `priority ${job.priority}`]);

function runsOf(spec) {
  const tasks = spec?.pod?.tasks ?? (spec?.task ? [spec.task] : []);
  const stands = (root) => root.image ?? root.rootfs ?? (root.host ? "the node's own /" : "");
  return listed(tasks.map(({ root = {}, command = [] }) => listed([stands(root), ...command], " ")), "; ");
}

// One that waits has no name; its place is its own.
const taskKey = (task) => task.name || `${task.job}\n${task.slot}\n${task.version}`;
const by = (field) => (a, b) => byName(a[field] ?? "", b[field] ?? "");
const inTurn = (...orders) => (a, b) => orders.reduce((known, order) => known || order(a, b), 0);

const LISTS = {
  jobs: {
    title: "Jobs",
    one: "job",
    items: (view) => view.jobs ?? [],
    key: (job) => job.name,
    order: inTurn(by("namespace"), by("name")),
    state: (job) => jobState(job)[1],
    states: Object.values(JOB_STATES).map(([, word]) => word),
    namespace: namespaceOf,
    text: (job) => [job.name, job.namespace, job.runs, job.sentence],
  },
  nodes: {
    title: "Nodes",
    one: "node",
    items: (view) => view.nodes ?? [],
    key: (node) => node.name,
    order: by("name"),
    state: (node) => presence(node)[1],
    isIn: (node, state) => (state === "Draining" ? Boolean(node.draining) : presence(node)[1] === state),
    states: [...Object.values(PRESENCE).map(([, word]) => word), "Draining"],
    text: (node) => [node.name, ...attributeList(node)],
  },
  tasks: {
    title: "Tasks",
    one: "task",
    items: (view) => view.instances ?? [],
    key: taskKey,
    order: inTurn(by("job"), by("slot"), by("name")),
    state: (task) => phase(task)[1],
    states: Object.values(PHASE).map(([, word]) => word),
    namespace: namespaceOf,
    text: (task) => [task.name, task.job, task.namespace, task.slot, task.node, task.sentence],
  },
  versions: { one: "version", key: (version) => String(version.version) },
};

const className = (title) => `column-${title.toLowerCase().replaceAll(" ", "-")}`;

// Rows are kept by key and cells change only where their content does. As many rows are made as were scrolled to.
class Table {
  constructor(kind, caption, { showCaption = true, without } = {}) {
    this.kind = kind;
    this.columns = COLUMNS[kind].filter(([title]) => title !== without);
    this.rows = new Map();
    this.limit = ROWS_AT_FIRST;
    // The roles say what the elements are also where the style sheet lays rows out as cards.
    const head = (title) => el("th", { scope: "col", role: "columnheader", class: className(title) }, title);
    const heads = this.columns.map(([title]) => head(title));
    this.body = el("tbody", { role: "rowgroup" });
    this.table = el("table", { class: `of-${kind}`, role: "table" },
      el("caption", showCaption ? {} : { class: "hidden-text" }, caption),
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads)), this.body);
    this.empty = el("p", { class: "muted empty", hidden: true });
    this.more = el("button", { type: "button", class: "more", hidden: true });
    this.more.addEventListener("click", () => this.extend());
    this.root = el("div", { class: "table" }, this.table, this.empty, this.more);
    const near = (seen) => seen.some((entry) => entry.isIntersecting) && this.extend();
    this.watcher = new IntersectionObserver(near, { rootMargin: "400px" });
    this.watcher.observe(this.more);
  }

  close() {
    this.watcher.disconnect();
  }

  extend() {
    if (this.more.hidden) return;
    this.limit += ROWS_MORE;
    this.show(this.items, this.nothing);
  }

  show(items, nothing) {
    this.items = items;
    this.nothing = nothing;
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    const shown = items.slice(0, this.limit);
    const key = LISTS[this.kind].key;
    const wanted = new Set(shown.map(key));
    for (const [name, row] of this.rows) if (!wanted.has(name)) this.drop(name, row);
    let place = this.body.firstElementChild;
    for (const item of shown) {
      const row = this.row(key(item));
      this.refresh(row, item);
      if (row === place) place = place.nextElementSibling;
      else this.body.insertBefore(row, place);
    }
    this.keepFocus(focused);
    this.end(items.length);
  }

  row(name) {
    const known = this.rows.get(name);
    if (known) return known;
    const cells = this.columns.map(([title], index) =>
      index ? el("td", { role: "cell", "data-label": title }) : el("th", { scope: "row", role: "rowheader" }));
    const made = el("tr", { role: "row" }, ...cells);
    this.rows.set(name, made);
    return made;
  }

  refresh(row, item) {
    this.columns.forEach(([, content], index) => fill(row.cells[index], content(item)));
  }

  drop(name, row) {
    this.rows.delete(name);
    row.remove();
  }

  // A row that moved is focused again; instead of one that went, the heading of what is shown.
  keepFocus(focused) {
    if (!focused || document.activeElement === focused) return;
    if (focused.isConnected) focused.focus({ preventScroll: true });
    else app.content?.heading.focus({ preventScroll: true });
  }

  end(count) {
    this.table.hidden = count === 0;
    this.empty.hidden = count !== 0;
    setText(this.empty, this.nothing);
    this.more.hidden = count <= this.limit;
    setText(this.more, `Show more: ${figures.format(Math.max(0, count - this.limit))} are not shown yet`);
  }
}

const option = (value, text = value) => el("option", { value }, plain(text));

function select(label, first, words) {
  const choice = el("select", {}, option("", first), ...words.map((word) => option(word)));
  return { choice, root: el("label", {}, el("span", {}, label), choice) };
}

// A list of everything of a kind, with its filters, which the address keeps.
class ListView {
  constructor({ view, words }) {
    this.list = LISTS[view];
    this.heading = el("h2", { id: "heading", tabindex: "-1" }, this.list.title);
    this.table = new Table(view, `${this.list.title} of the cluster`, { showCaption: false });
    this.count = el("p", { class: "muted count-shown" });
    this.text = el("input", { type: "search", autocomplete: "off", spellcheck: "false" });
    this.state = select("State", "Any", this.list.states);
    this.namespace = this.list.namespace && select("Namespace", "All", []);
    this.namespaces = "";
    this.begin(words);
    const name = `Filter ${this.list.title.toLowerCase()}`;
    const filters = el("form", { class: "filters", role: "search", "aria-label": name },
      el("label", { class: "wide" }, el("span", {}, "Text"), this.text),
      ...(this.namespace ? [this.namespace.root] : []), this.state.root);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("input", () => this.changed());
    const head = el("div", { class: "list-head" }, this.heading, this.count);
    this.root = el("section", { "aria-labelledby": "heading" }, head, filters, this.table.root);
  }

  begin(words) {
    this.text.value = words.get("text") ?? "";
    this.state.choice.value = this.list.states.includes(words.get("state")) ? words.get("state") : "";
    if (words.get("namespace")) this.offer([words.get("namespace")]);
    if (this.namespace) this.namespace.choice.value = words.get("namespace") ?? "";
  }

  changed() {
    const words = new URLSearchParams();
    const filters = { text: this.text, state: this.state.choice, namespace: this.namespace?.choice };
    for (const [name, input] of Object.entries(filters)) if (input?.value) words.set(name, input.value);
    const hash = listed([`#/${app.route.view}`, words.toString()], "?");
    history.replaceState(null, "", hash);
    this.table.limit = ROWS_AT_FIRST;
    schedule();
  }

  offer(namespaces) {
    const key = namespaces.join("\n");
    if (!this.namespace || key === this.namespaces) return;
    this.namespaces = key;
    const chosen = this.namespace.choice.value;
    const names = chosen && !namespaces.includes(chosen) ? [...namespaces, chosen] : namespaces;
    this.namespace.choice.replaceChildren(option("", "All"), ...names.map((name) => option(name)));
    this.namespace.choice.value = chosen;
  }

  show(view) {
    const { items, order, text, state, isIn, namespace, one, title } = this.list;
    const all = inOrder(view, items, order);
    if (namespace) this.offer([...new Set(all.map(namespace))].sort(byName));
    const words = this.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [inState, inSpace] = [this.state.choice.value, this.namespace?.choice.value];
    const fits = (item) =>
      (!inState || (isIn ? isIn(item, inState) : state(item) === inState)) &&
      (!inSpace || namespace(item) === inSpace) &&
      (!words.length || has(text(item), words));
    const shown = all.filter(fits);
    const some = shown.length === all.length ? "" : `${figures.format(shown.length)} of `;
    setText(this.count, some + many(all.length, one));
    this.table.show(shown, all.length ? `No ${one} fits the filters.` : `There are no ${title.toLowerCase()} yet.`);
  }

  close() {
    this.table.close();
  }
}

// Sorted once for each view that comes, not for each letter of a filter.
const orders = new WeakMap();

function inOrder(view, items, order) {
  if (!orders.has(view)) orders.set(view, new Map());
  const known = orders.get(view);
  if (!known.has(items)) known.set(items, [...items(view)].sort(order));
  return known.get(items);
}

function has(texts, words) {
  const text = texts.filter(Boolean).join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

const tasksOf = (view) => inOrder(view, LISTS.tasks.items, LISTS.tasks.order);

// A list of names and what they have, of which those without anything are left out.
class Facts {
  constructor() {
    this.root = el("dl", { class: "facts" });
    this.shown = new Map();
  }

  show(facts) {
    const wanted = facts.filter(([, parts]) => parts.some((part) => part !== "" && part !== undefined));
    const names = wanted.map(([name]) => name).join("\n");
    for (const [name, parts] of wanted) {
      const known = this.shown.get(name) ?? el("dd");
      this.shown.set(name, known);
      fill(known, parts);
    }
    if (names === this.names) return;
    this.names = names;
    this.root.replaceChildren(...wanted.map(([name]) => el("div", {}, el("dt", {}, name), this.shown.get(name))));
  }
}

class DetailView {
  constructor({ view, name }) {
    this.view = view;
    this.name = name;
    const { title, one } = LISTS[view];
    this.heading = el("h2", { id: "heading", tabindex: "-1" },
      el("span", { class: "kind" }, `${capital(one)} `), el("span", { class: "name" }, plain(name)));
    this.badges = el("p", { class: "badges" });
    this.actions = el("div", { class: "actions", role: "group", "aria-label": `Change this ${one}` });
    this.facts = new Facts();
    const gone = `There is no ${one} of this name, or it is gone.`;
    this.gone = el("p", { class: "note", "data-tone": "warn", hidden: true }, gone);
    this.rest = el("div", { class: "rest" });
    this.root = el("section", { "aria-labelledby": "heading" },
      el("p", { class: "back" }, el("a", { href: `#/${view}` }, `All ${title.toLowerCase()}`)),
      el("div", { class: "list-head" }, this.heading, this.badges),
      this.gone, this.actions, this.facts.root, this.rest);
    this.parts = [];
  }

  add(part) {
    this.parts.push(part);
    this.rest.append(part.root);
    return part;
  }

  action(label, begin) {
    const button = el("button", { type: "button" }, label);
    button.addEventListener("click", begin);
    this.actions.append(button);
    return button;
  }

  show(view) {
    const found = LISTS[this.view].items(view).find((item) => item.name === this.name);
    this.gone.hidden = Boolean(found);
    this.actions.hidden = !found || !app.mayAct || !this.actions.childElementCount;
    if (found) this.update(found, view);
  }

  close() {
    this.closed = true;
    this.parts.forEach((part) => part.close?.());
  }
}

class JobView extends DetailView {
  constructor(route) {
    super(route);
    const name = this.name;
    this.scale = this.action("Scale", () => confirmed(scaling(this.job)));
    this.back = this.action("Roll back", () => confirmed(rollingBack(this.job, this.versions)));
    this.stop = this.action("Stop", () => confirmed(stopping(this.job)));
    this.tasks = this.add(new Table("tasks", `Tasks of ${plain(name)}`, { without: "Job" }));
    this.versionTable = this.add(new Table("versions", "Versions that are known"));
    this.versions = [];
  }

  update(job, view) {
    this.job = job;
    fill(this.badges, [badge(jobState(job))]);
    this.scale.hidden = Boolean(job.kind) && job.kind !== "replicas";
    this.back.hidden = number(job.version) < 2;
    this.stop.hidden = Boolean(job.stopped);
    this.facts.show([
      ["Ready", readiness(job)],
      ["Runs", [job.runs ?? ""]],
      ["Why it waits", [job.sentence ?? ""]],
      ["Rollout", [named(job.rollout, "ROLLOUT_")]],
      ["Version", [String(number(job.version))]],
      ["Stable version", [number(job.stable) ? String(job.stable) : "none yet"]],
      ["Kind", [lookUp(KINDS, job.kind, job.kind ?? "")]],
      ["Namespace", [namespaceOf(job)]],
      ["Priority", [String(number(job.priority))]],
    ]);
    const tasks = tasksOf(view).filter((task) => task.job === this.name);
    this.tasks.show(tasks, "Nothing of this job is there.");
    this.versionTable.show(this.versions, "");
    this.learn(job);
  }

  // The view of the cluster has no versions.
  async learn(job) {
    const key = `${job.version} ${job.rollout} ${job.ready}`;
    if (this.learned === key) return;
    this.learned = key;
    const answer = await ask("GET", `/v1/jobs/${encodeURIComponent(this.name)}`);
    if (!answer.status) this.learned = undefined;
    if (!answer.ok || this.closed) return;
    this.versions = [...(answer.body.versions ?? [])].reverse();
    this.versionTable.show(this.versions, "");
  }
}

class NodeView extends DetailView {
  constructor(route) {
    super(route);
    this.drain = this.action("", () => confirmed(toDrain(this.node)));
    this.tasks = this.add(new Table("tasks", `Tasks on ${plain(this.name)}`, { without: "Node" }));
  }

  update(node, view) {
    this.node = node;
    fill(this.badges, nodeBadges(node));
    setText(this.drain, node.draining ? "Take tasks again" : "Drain");
    this.facts.show([
      ["CPU allocated", amountCell(node.capacity, "cpu")],
      ["Memory allocated", amountCell(node.capacity, "memory")],
      ["Pressure", [pressure(node.capacity)]],
      ["Tasks", [figures.format(number(node.instances))]],
      ["Heard", when(node.heard, time(node.heard))],
      ["Is to be empty within", [node.drainWithin ?? ""]],
      ["Attributes", chips(attributeList(node))],
      ["Features", chips(node.features ?? [])],
      ["Software", [node.software ?? ""]],
      ["Instance", [node.instance ?? ""]],
      ["Boot", [node.bootId ?? ""]],
      ["Starts of the agent", [number(node.incarnation) ? figures.format(number(node.incarnation)) : ""]],
    ]);
    const tasks = tasksOf(view).filter((task) => task.node === this.name);
    this.tasks.show(tasks, "No tasks are on this node.");
  }
}

class TaskView extends DetailView {
  constructor(route) {
    super(route);
    this.log = this.add(new Log(this.name));
    this.more = [];
  }

  update(task) {
    this.task = task;
    fill(this.badges, [badge(phase(task))]);
    // What can tell of the cluster again can tell of the log.
    if (this.log.isBroken) this.log.read();
    this.refresh();
    this.learn(task);
  }

  refresh() {
    const task = this.task;
    const ports = (task.ports ?? []).map(({ host, container, protocol }) =>
      `${number(host)} \u2192 ${number(container)}/${protocol || "tcp"}`);
    this.facts.show([
      ["Why", [task.sentence ?? ""]],
      ["Job", [linked("jobs", task.job), small(`version ${number(task.version)}, slot ${task.slot ?? ""}`)]],
      ["Node", when(task.node, linked("nodes", task.node))],
      ["On its node", [named(task.state, "STATE_")]],
      ["Started", when(task.started, time(task.started))],
      ["Failures in a row", [number(task.failures) ? figures.format(number(task.failures)) : ""]],
      ["Addresses", [(task.addresses ?? []).join(", ")]],
      ["Ports", [ports.join(", ")]],
      ["Namespace", [namespaceOf(task)]],
      ...this.more,
    ]);
  }

  // The view of the cluster has no status of tasks.
  async learn(task) {
    const key = `${task.phase} ${task.state} ${task.started} ${task.failures}`;
    if (this.learned === key) return;
    this.learned = key;
    const answer = await ask("GET", `/v1/instances/${encodeURIComponent(this.name)}`);
    if (!answer.status) this.learned = undefined;
    if (!answer.ok || this.closed) return;
    const tasks = answer.body.tasks ?? [];
    this.more = tasks.flatMap((status) => statusFacts(status, tasks.length > 1 ? `${plain(status.id)}: ` : ""));
    this.refresh();
  }
}

const checkState = ({ passing, message }) => (passing ? "passing" : listed(["failing", message]));

function statusFacts({ reason = {}, attempt, checks = [], spec }, prefix) {
  const exit = reason.exit ?? {};
  const code = exit.signal !== undefined ? `signal ${exit.signal}` : exit.code !== undefined ? `code ${exit.code}` : "";
  const usage = exit.usage ?? {};
  return [
    [`${prefix}Runs`, [runsOf({ task: spec ?? {} })]],
    [`${prefix}Reason`, [reason.sentence ?? ""]],
    [`${prefix}Last exit`, [code]],
    [`${prefix}Limits reached`, (exit.violations ?? []).map((violation) => small(violation.sentence))],
    [`${prefix}Peak of memory`, [number(usage.memoryPeak) ? bytes(number(usage.memoryPeak)) : ""]],
    [`${prefix}Attempt`, [number(attempt) ? String(attempt) : ""]],
    [`${prefix}Checks`, checks.map(({ name, ...check }) => small(`${name}: ${checkState(check)}`))],
  ];
}

// ECMA-48: control sequences, strings (titles, links) up to their end, and other escapes.
const ESCAPES = new RegExp([
  /(?:\u001b\[|\u009b)[0-?]*[ -/]*[@-~]/,
  /\u001b[\]PX^_][^\u0007\u001b]*(?:\u0007|\u001b\\)?/,
  /\u001b[ -/]*[0-~]?/,
].map((part) => part.source).join("|"), "g");
const utf8 = new TextDecoder();

function logText(base64) {
  const raw = Uint8Array.from(atob(base64 ?? ""), (character) => character.charCodeAt(0));
  const line = utf8.decode(raw).replace(/\r?\n$/, "").replace(ESCAPES, "");
  // What a carriage return writes over is not seen in a terminal either.
  const seen = line.slice(line.lastIndexOf("\r", line.length - 2) + 1);
  return seen.replace(/\r/g, "").replace(UNSEEN, "\ufffd");
}

class Log {
  constructor(name) {
    this.name = name;
    this.waiting = [];
    const label = `Log of ${plain(name)}`;
    this.lines = el("div", { class: "lines", tabindex: "0", role: "log", "aria-live": "off", "aria-label": label });
    this.status = el("p", { class: "muted", role: "status" });
    this.follow = el("input", { type: "checkbox", checked: true });
    this.again = el("button", { type: "button", hidden: true }, "Read again");
    this.again.addEventListener("click", () => this.read());
    this.follow.addEventListener("change", () => this.scroll());
    this.root = el("section", { class: "log", "aria-labelledby": "log-heading" },
      el("div", { class: "list-head" }, el("h3", { id: "log-heading" }, "Log"),
        el("label", { class: "check" }, this.follow, el("span", {}, "Follow")), this.again),
      this.lines, this.status);
    this.read();
  }

  async read() {
    this.stop = new AbortController();
    this.again.hidden = true;
    this.failed = undefined;
    this.isBroken = false;
    try {
      const path = `/v1/instances/${encodeURIComponent(this.name)}/logs?follow&tail=${TAIL}`;
      const response = await fetch(path, { signal: this.stop.signal });
      if (!response.ok) return this.ended((await failure(response)).message);
      this.lines.replaceChildren();
      setText(this.status, "Nothing was written yet.");
      await eachLine(response.body, (line) => this.take(JSON.parse(line)));
      this.ended(this.failed ?? "The log has ended.");
    } catch (error) {
      if (this.stop.signal.aborted) return;
      this.isBroken = true;
      this.ended("The connection to the log broke.");
    }
  }

  ended(sentence) {
    this.flush();
    setText(this.status, plain(sentence));
    this.again.hidden = false;
  }

  take(entry) {
    if (entry.error) this.failed = entry.error.message;
    else this.waiting.push(entry);
    if (this.waiting.length > 2 * MOST_LOG_LINES) this.waiting.splice(0, MOST_LOG_LINES);
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  flush() {
    this.frame = undefined;
    const made = this.waiting.splice(0).slice(-MOST_LOG_LINES).map((entry) => this.line(entry));
    this.lines.append(...made);
    if (made.length) setText(this.status, "");
    while (this.lines.childElementCount > MOST_LOG_LINES) this.lines.firstElementChild.remove();
    this.scroll();
  }

  line({ time: stamp, stream, line }) {
    const isError = stream === "STREAM_STDERR";
    return el("div", { class: isError ? "line stderr" : "line" },
      el("time", { datetime: stamp, title: plain(stamp) }, stamp ? clock(new Date(stamp)) : ""),
      el("span", { class: "stream" }, isError ? "err" : "out"), el("span", { class: "said" }, logText(line)));
  }

  scroll() {
    if (this.follow.checked) this.lines.scrollTop = this.lines.scrollHeight;
  }

  close() {
    this.stop?.abort();
    cancelAnimationFrame(this.frame);
  }
}

async function eachLine(body, take) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.filter(Boolean).forEach(take);
  }
  if (rest) take(rest);
}

async function failure(response) {
  const words = await response.json().catch(() => ({}));
  const message = plain(words.message ?? `The coordinator answered ${response.status}.`);
  return { ok: false, status: response.status, message };
}

async function ask(method, path, body) {
  try {
    const headers = body ? { "content-type": "application/json" } : {};
    const response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    if (!response.ok) return await failure(response);
    return { ok: true, status: response.status, body: await response.json() };
  } catch {
    return { ok: false, status: 0, message: "The coordinator could not be reached. Nothing is known to have changed." };
  }
}

function toDrain(node) {
  const path = `/v1/nodes/${encodeURIComponent(node.name)}/drain`;
  const [name, on] = [plain(node.name), !node.draining];
  const run = () => ask("POST", path, { on });
  if (!on) {
    const text = "New tasks may be placed on it from now on.";
    const title = `Let ${name} take tasks again?`;
    return { title, text, label: "Take tasks again", run, done: `${name} takes tasks again.` };
  }
  const tasks = many(number(node.instances), "task");
  const text = `It gets no new tasks, and the ${tasks} on it move to other nodes, as far as there is room.`;
  return { title: `Drain ${name}?`, text, label: "Drain", run, done: `${name} is draining.` };
}

const toJob = (job, verb, body) => ask("POST", `/v1/jobs/${encodeURIComponent(job.name)}/${verb}`, body);

function stopping(job) {
  const name = plain(job.name);
  const tasks = many(number(job.ready) + number(job.starting), "task");
  const text = `Its ${tasks} will be stopped, and nothing of it starts again until it is submitted anew.`;
  const run = () => toJob(job, "stop", { purge: false });
  return { title: `Stop ${name}?`, text, label: "Stop", danger: true, run, done: `${name} is being stopped.` };
}

function scaling(job) {
  const [name, wanted] = [plain(job.name), number(job.wanted)];
  const input = el("input", { type: "number", min: "0", max: "100000", step: "1", required: true, value: wanted });
  const field = el("label", {}, el("span", {}, "Replicas"), input);
  const text = `It wants ${many(wanted, "task")} now.`;
  const run = () => toJob(job, "scale", { replicas: input.valueAsNumber });
  return { title: `Scale ${name}`, text, field, label: "Scale", run, done: `${name} is being scaled.` };
}

function rollingBack(job, versions) {
  const [name, present] = [plain(job.name), number(job.version)];
  const earlier = versions.map(({ version }) => number(version)).filter((version) => version !== present);
  const choice = el("select", {}, option("0", "The one before the present one"),
    ...earlier.map((version) => option(version, `Version ${version}`)));
  const field = el("label", {}, el("span", {}, "To"), choice);
  const text = `The earlier version comes back as a new one; now it is version ${present}.`;
  const run = () => toJob(job, "rollback", { version: Number(choice.value) });
  return { title: `Roll ${name} back?`, text, field, label: "Roll back", run, done: `${name} is being rolled back.` };
}

// The question before anything is changed. The dialog gives the focus back itself.
let asked = null;

function confirmed(question) {
  asked = question;
  setText($("confirm-title"), question.title);
  setText($("confirm-text"), question.text);
  $("confirm-field").replaceChildren(...(question.field ? [question.field] : []));
  setText($("confirm-do"), question.label);
  $("confirm-do").dataset.tone = question.danger ? "bad" : "";
  $("confirm-error").hidden = true;
  $("confirm").showModal();
  (question.field?.querySelector("input, select") ?? $("confirm-cancel")).focus();
}

async function carryOut() {
  const question = asked;
  $("confirm-do").disabled = true;
  const answer = await question.run();
  $("confirm-do").disabled = false;
  if (answer.ok) announce(question.done);
  if (question !== asked || !$("confirm").open) return;
  if (answer.ok) {
    $("confirm").close();
    return;
  }
  setText($("confirm-error"), answer.message);
  $("confirm-error").hidden = false;
  if (answer.status === 403) {
    app.mayAct = false;
    schedule();
  }
}

function announce(text) {
  setText($("announce"), text);
}

// Said aloud at most every few seconds, and the last one surely.
let announced = { text: "", at: 0, timer: 0 };

function announceSummary(text) {
  if (text === announced.text) return;
  clearTimeout(announced.timer);
  const wait = announced.at + LEAST_BETWEEN_ANNOUNCEMENTS - Date.now();
  if (wait > 0) {
    announced.timer = setTimeout(() => announceSummary(text), wait);
    return;
  }
  announced = { text, at: Date.now(), timer: 0 };
  announce(text);
}

function summary({ nodes = [], jobs = [] }) {
  const here = nodes.filter((node) => node.presence === "PRESENCE_HERE").length;
  const going = jobs.filter((job) => !job.stopped);
  const waiting = sum(going, "waiting");
  const parts = [
    `${figures.format(here)} of ${many(nodes.length, "node")} here`,
    many(jobs.length, "job"),
    `${figures.format(sum(going, "ready"))} of ${many(sum(going, "wanted"), "task")} ready`,
  ];
  if (waiting) parts.push(`${figures.format(waiting)} waiting`);
  return parts.join(" \u00b7 ");
}

const LEGEND = ["used", "allocated", "allocatable", "reserved", "total"];

// One for each resource, made once.
class Gauge {
  constructor(of) {
    this.of = of;
    const { name } = AMOUNTS[of];
    this.line = el("p", { class: "gauge-line" });
    this.bar = el("div", {});
    this.values = LEGEND.map(() => el("dd"));
    const legend = LEGEND.map((part, index) =>
      el("div", { class: `legend-${part}` }, el("dt", {}, capital(part)), this.values[index]));
    this.root = el("div", { class: "gauge" }, el("h3", {}, name), this.line, this.bar, el("dl", {}, ...legend));
  }

  show(capacity) {
    const has = amounts(capacity, this.of);
    const { show, bare } = AMOUNTS[this.of];
    const share = Math.round((has.allocated / has.allocatable) * 100);
    setText(this.line, has.allocatable ? `${percent(share)} allocated` : "nothing to allocate");
    fill(this.bar, [{ bar: has }]);
    LEGEND.forEach((part, index) => setText(this.values[index], part === "total" ? show(has[part]) : bare(has[part])));
  }
}

const gauges = [new Gauge("cpu"), new Gauge("memory")];
$("capacity").append(...gauges.map((gauge) => gauge.root));

const MOST_TROUBLES = 5;

const awayLine = (node) =>
  [badge(presence(node)), linked("nodes", node.name), ...when(node.heard, " last heard ", time(node.heard))];
const stuckLine = (job) => [badge(jobState(job)), linked("jobs", job.name), ` ${job.sentence ?? ""}`];

function troubles({ nodes = [], jobs = [] }) {
  const away = nodes.filter((node) => ["bad", "warn"].includes(presence(node)[0]));
  const isStuck = (job) => ["bad", "warn"].includes(jobState(job)[0]);
  const found = [
    ...away.sort(LISTS.nodes.order).map(awayLine),
    ...jobs.filter(isStuck).sort(LISTS.jobs.order).map(stuckLine),
  ];
  const rest = found.length - MOST_TROUBLES;
  return rest > 0 ? [...found.slice(0, MOST_TROUBLES), [`and ${figures.format(rest)} more`]] : found;
}

function showTroubles(view) {
  const found = troubles(view);
  const list = $("attention").querySelector("ul");
  while (list.childElementCount > found.length) list.lastElementChild.remove();
  while (list.childElementCount < found.length) list.append(el("li"));
  found.forEach((parts, index) => fill(list.children[index], parts));
  $("attention").hidden = !found.length;
}

function showOverview(view) {
  const text = summary(view);
  setText($("summary"), text);
  announceSummary(text);
  gauges.forEach((gauge) => gauge.show(view.capacity));
  const waits = pressure(view.capacity);
  setText($("pressure"), waits && `Pressure, the share of the last seconds in which some process had to wait, on the node where it is greatest: ${waits}`);
  showTroubles(view);
  for (const kind of Object.keys(VIEWS)) setText($(`count-${kind}`), figures.format(LISTS[kind].items(view).length));
  const version = listed([view.version && `version ${view.version}`, number(view.epoch) && `epoch ${view.epoch}`]);
  setText($("coordinator"), plain(listed([view.coordinator, version], " \u00b7 ")));
}

const VIEWS = { jobs: JobView, nodes: NodeView, tasks: TaskView };

function parse(hash) {
  const [path, words = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [view, ...rest] = path.split("/");
  const isView = Object.hasOwn(VIEWS, view);
  const route = { view: isView ? view : "jobs", name: "", words: new URLSearchParams(words) };
  try {
    if (isView) route.name = decodeURIComponent(rest.join("/"));
  } catch {
    // A "%" that begins nothing: as it stands.
    route.name = rest.join("/");
  }
  return route;
}

function go(event) {
  app.content?.close();
  app.route = parse(location.hash);
  const { view, name } = app.route;
  app.content = name ? new VIEWS[view](app.route) : new ListView(app.route);
  $("content").replaceChildren(app.content.root);
  document.title = listed([name && plain(name), LISTS[view].title, "Hafen"], " \u00b7 ");
  for (const tab of document.querySelectorAll(".tabs a")) {
    if (tab.hash === `#/${view}`) tab.setAttribute("aria-current", name ? "true" : "page");
    else tab.removeAttribute("aria-current");
  }
  render();
  if (event) {
    window.scrollTo(0, 0);
    app.content.heading.focus({ preventScroll: true });
  }
}

function render() {
  scheduled = false;
  $("content").hidden = !app.view;
  $("loading").hidden = Boolean(app.view);
  $("overview").hidden = !app.view || Boolean(app.route.name);
  if (!app.view) return;
  showOverview(app.view);
  app.content.show(app.view);
}

// At most once for each frame, and not at all while nobody can see it.
let scheduled = false;

function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(render);
}

let hurry = () => {};

const pause = (milliseconds) => new Promise((resolve) => {
  const timer = setTimeout(resolve, milliseconds);
  hurry = () => {
    clearTimeout(timer);
    resolve();
  };
});

async function poll() {
  const after = encodeURIComponent(app.view?.revision ?? "0");
  const signal = AbortSignal.timeout(POLL_LIMIT);
  const response = await fetch(`/v1/cluster?after=${after}`, { signal, cache: "no-store" });
  if (!response.ok) throw new Error((await failure(response)).message);
  const begun = performance.now();
  const view = await response.json();
  if (view.time) app.skew = Date.parse(view.time) - Date.now();
  app.view = view;
  app.knownAt = new Date();
  connection("good", "Live");
  schedule();
  // What takes long to read is asked for less often.
  return Math.max(LEAST_BETWEEN_POLLS, 10 * (performance.now() - begun));
}

function connection(tone, text) {
  $("connection").dataset.tone = tone;
  setText($("connection-text"), text);
  setText($("connection-next"), "");
  // A button that goes takes the focus along.
  if (tone === "good" && document.activeElement === $("connect-now")) $("main").focus({ preventScroll: true });
  $("connect-now").hidden = tone === "good";
}

function lost(error, wait) {
  // What fetch itself says differs between browsers; what the coordinator says is worth showing.
  const why = error instanceof TypeError || error.name === "TimeoutError" ? "" : ` ${plain(error.message)}`;
  const old = app.knownAt && `Connection lost: showing what was known at ${clock(app.knownAt)}.`;
  connection("bad", (old ?? "The coordinator cannot be reached.") + why);
  setText($("connection-next"), `Next try in ${span(Math.ceil(wait / 1000))}.`);
}

async function stayConnected() {
  let wait = 0;
  for (;;) {
    try {
      const rest = await poll();
      wait = 0;
      await pause(rest);
    } catch (error) {
      wait = Math.min(LONGEST_BACK_OFF, wait ? wait * 2 : 1_000);
      // Not all pages at the same moment.
      const jittered = wait * (0.75 + Math.random() / 2);
      lost(error, jittered);
      await pause(jittered);
    }
  }
}

$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
$("connect-now").addEventListener("click", () => hurry());
$("confirm-cancel").addEventListener("click", () => $("confirm").close());
$("confirm").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  carryOut();
});
window.addEventListener("hashchange", go);
window.addEventListener("online", () => hurry());
// Ages go on while nothing changes.
setInterval(schedule, 15_000);
go();
stayConnected();
