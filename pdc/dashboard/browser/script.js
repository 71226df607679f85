"use strict";
// The page asks for the counts of the storage again and again. Rates come from the differences of two answers, which this tab
// keeps; the server keeps nothing. Anybody may make up routes and labels, so every text goes through `textContent`.

const EVERY = 5;        // seconds between two polls, or more where the server is slow
const KEPT = 900;       // seconds for which steps are kept
const MOST_ROWS = 100;  // rows of a table
const BAD = 0.01;       // a share of errors that is shown as one
const QUANTILES = { p50: 0.5, p90: 0.9, p99: 0.99 };
const SVG = "http://www.w3.org/2000/svg";

let before = null;      // the last answer: its series by their names
let steps = [];         // the growth between two answers each, the oldest first
let timer = 0;
let isBusy = false;
let sorting = { by: "rate", down: true };

const $ = (id) => document.getElementById(id);
const isPaused = () => $("pause").getAttribute("aria-pressed") === "true";

// --- Numbers as texts

const format = (options) => new Intl.NumberFormat("en", options).format;
const whole = format({ maximumFractionDigits: 0 });
const threeDigits = format({ minimumSignificantDigits: 3, maximumSignificantDigits: 3, notation: "compact" });
const short = (value) => value ? threeDigits(value) : "0";
const count = (value) => value == null ? "–" : value < 1e6 && value % 1 === 0 ? whole(value) : short(value);

function share(value) {
  if (isNaN(value)) return "–";
  return value === 0 ? "0%" : value < 0.0005 ? "<0.1%" : `${(100 * value).toFixed(1)}%`;
}

function time(seconds) {
  if (isNaN(seconds)) return "–";
  if (seconds < 1) return `${(1000 * seconds).toPrecision(seconds < 0.1 ? 2 : 3)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 2 : 0)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${whole(seconds / 3600)} h`;
}

// --- Growth, by the rules of `pdc top`

const grown = (earlier, now) => now >= earlier ? now - earlier : now;  // a smaller number is a counter that began again
const nothing = () => ({ seconds: 0, routes: new Map(), exceptions: new Map(), own: new Map() });

function add(target, key, amount) {
  target.set(key, (target.get(key) ?? 0) + amount);
}

function routeOf(routes, route) {
  if (!routes.has(route)) routes.set(route, { count: 0, failed: 0, buckets: new Map() });
  return routes.get(route);
}

function addRoute(target, more) {
  target.count += more.count;
  target.failed += more.failed;
  for (const [bound, growth] of more.buckets) add(target.buckets, bound, growth);
}

// The bounds and the cumulated counts of a histogram, from the lowest bound on.
function sortedBuckets(buckets) {
  return Object.entries(buckets).map(([le, value]) => [Number(le.replace("+Inf", "Infinity")), value]).sort(([a], [b]) => a - b);
}

// Adds the growth of each bucket by itself, without that of those below: other histograms may have other bounds.
function addBuckets(target, earlier, now) {
  const known = sortedBuckets(earlier);
  let [place, was, below] = [0, 0, 0];
  for (const [bound, value] of sortedBuckets(now)) {
    while (place < known.length && known[place][0] <= bound) was = known[place++][1];  // a new bound had the count of the one below it
    const growth = Math.max(grown(was, value), below);
    add(target, bound, growth - below);
    below = growth;
  }
}

// The rows of an answer by the names of their series.
function named(answer) {
  const byName = (rows) => new Map(rows.map(([name, ...rest]) => [name, rest]));
  const { requests, durations, exceptions } = answer;
  return { ...answer, requests: byName(requests), durations: byName(durations), exceptions: byName(exceptions) };
}

// The growth of each route, exception and metric about pdc between two answers.
function stepOf(earlier, now) {
  const step = { ...nothing(), at: now.at, seconds: now.at - earlier.at };
  for (const [name, [route, isFailed, value]] of now.requests) {
    const growth = grown(earlier.requests.get(name)?.[2] ?? 0, value);
    addRoute(routeOf(step.routes, route), { count: growth, failed: isFailed ? growth : 0, buckets: [] });
  }
  for (const [name, [route, buckets]] of now.durations) {
    addBuckets(routeOf(step.routes, route).buckets, earlier.durations.get(name)?.[1] ?? {}, buckets);
  }
  for (const [name, [exception, place, value]] of now.exceptions) {
    add(step.exceptions, JSON.stringify([exception, place]), grown(earlier.exceptions.get(name)?.[2] ?? 0, value));
  }
  for (const [name, value] of Object.entries(now.own)) add(step.own, name, grown(earlier.own[name] ?? 0, value));
  return step;
}

// The growth of several steps together.
function sum(chosen) {
  const all = nothing();
  for (const step of chosen) {
    all.seconds += step.seconds;
    for (const [route, more] of step.routes) addRoute(routeOf(all.routes, route), more);
    for (const [key, growth] of step.exceptions) add(all.exceptions, key, growth);
    for (const [name, growth] of step.own) add(all.own, name, growth);
  }
  return all;
}

// As `histogram_quantile` of Prometheus has it.
function quantile(wanted, buckets) {
  const sorted = [...buckets].sort(([a], [b]) => a - b);
  const rank = wanted * sorted.reduce((so, [, growth]) => so + growth, 0);
  if (rank === 0) return NaN;
  let [lower, below] = [0, 0];
  for (const [bound, growth] of sorted) {
    if (below + growth >= rank) return bound === Infinity ? lower : lower + (bound - lower) * (rank - below) / growth;
    [lower, below] = [bound, below + growth];
  }
  return lower;
}

function rowOf({ count, failed, buckets }, seconds) {
  const row = { rate: count / seconds, errors: count ? failed / count : NaN };
  for (const [name, wanted] of Object.entries(QUANTILES)) row[name] = quantile(wanted, buckets);
  return row;
}

function rowOfAll(step) {
  const all = { count: 0, failed: 0, buckets: new Map() };
  for (const route of step.routes.values()) addRoute(all, route);
  return rowOf(all, step.seconds);
}

// --- Drawing

function show(element, text, isBad = false) {
  if (element.textContent !== text) element.textContent = text;
  element.classList.toggle("bad", isBad);
}

function element(tag, role = "", text = "") {
  const made = document.createElement(tag);
  if (role) made.setAttribute("role", role);
  if (role === "rowheader") made.scope = "row";
  made.textContent = text;
  return made;
}

// Draws lines of [time, value] in a square that the style stretches; NaN is a gap. Returns the value at the top.
function draw(svg, lines) {
  const points = Object.values(lines).flat().filter(([, value]) => !isNaN(value));
  const [from, to] = [points[0]?.[0], points.at(-1)?.[0]];
  const top = Math.max(...points.map(([, value]) => value), 0);
  const at = (when, value) => `${(100 * (when - from) / (to - from || 1)).toFixed(2)},${(99 - 94 * value / (top || 1)).toFixed(2)}`;
  const paths = [];
  const path = (name, d) => {
    const made = document.createElementNS(SVG, "path");
    made.setAttribute("class", name);
    made.setAttribute("d", d);
    paths.push(made);
  };
  for (const [name, line] of Object.entries(lines)) {
    const d = line.map(([when, value], number) =>
      isNaN(value) ? "" : (number && !isNaN(line[number - 1][1]) ? "L" : "M") + at(when, value)).join("");
    if (name === "line" && d) path("area", `${d}L${at(to, 0)}L${at(from, 0)}Z`);
    path(name, d);
  }
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(...paths);
  return points.length ? top : NaN;
}

function drawAll(chosen) {
  const rows = chosen.map((step) => [step.at, rowOfAll(step)]);
  const line = (key) => rows.map(([at, row]) => [at, row[key]]);
  const errors = rows.map(([at, row]) => [at, row.errors || 0]);
  for (const [name, title, lines, text] of [
    ["rate", "Requests per second", { line: line("rate") }, (value) => `${short(value)}/s`],
    ["errors", "Share of errors", { line: errors }, share],
    ["latency", "Latency", { p50: line("p50"), p90: line("p90"), p99: line("p99") }, time],
  ]) {
    const svg = document.querySelector(`#${name}-chart svg`);
    const top = draw(svg, lines);
    const about = `${time(chosen.at(-1).at - chosen[0].at + chosen[0].seconds)} ago until now, peak ${text(top)}`;
    svg.setAttribute("aria-label", `${title}, ${about}`);
    show(svg.nextElementSibling, about);
  }
}

// Fills one row for each key, in this order. Rows stay where they are as far as they can: somebody may be reading them.
function fill(body, rows, cells) {
  const known = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const wanted = rows.map((values) => {
    const row = known.get(values.key) ?? element("tr", "row");
    row.dataset.key = values.key;
    if (!row.children.length) row.append(...cells.map((_, number) => number ? element("td", "cell") : element("th", "rowheader")));
    cells.forEach((cell, number) => cell(row.children[number], values));
    return row;
  });
  const isSame = wanted.length === body.children.length && wanted.every((row, number) => row === body.children[number]);
  if (!isSame) body.replaceChildren(...wanted);
}

function fillRoutes(all, chosen) {
  const wanted = $("filter").value.toLowerCase();
  const busy = [...all.routes].filter(([, { count }]) => count > 0);
  const rows = busy.filter(([route]) => route.toLowerCase().includes(wanted));
  const order = (a, b) => sorting.by === "key" ? a.key.localeCompare(b.key) : (a[sorting.by] || 0) - (b[sorting.by] || 0);
  const sorted = rows.map(([key, found]) => ({ key, ...rowOf(found, all.seconds) }))
    .sort((a, b) => (sorting.down ? -1 : 1) * order(a, b) || a.key.localeCompare(b.key));
  const trend = (cell, { key }) => {
    cell.className = "trend";
    if (!cell.firstChild) cell.append(document.createElementNS(SVG, "svg"));
    cell.firstChild.setAttribute("aria-hidden", "true");
    draw(cell.firstChild, { line: chosen.map((step) => [step.at, (step.routes.get(key)?.count ?? 0) / step.seconds]) });
  };
  fill($("routes"), sorted.slice(0, MOST_ROWS), [
    (cell, row) => show(cell, row.key || "(no route)"),
    trend,
    (cell, row) => show(cell, short(row.rate)),
    (cell, row) => show(cell, share(row.errors), row.errors >= BAD),
    ...Object.keys(QUANTILES).map((name) => (cell, row) => show(cell, time(row[name]))),
  ]);
  const hidden = rows.length - MOST_ROWS;
  const none = busy.length ? "No route matches." : "No requests in this time.";
  show($("routes-note"), hidden > 0 ? `${whole(hidden)} more routes: the filter finds them.` : rows.length ? "" : none);
  show($("routes-caption"), `Requests of the last ${time(all.seconds)} by route. The buttons of the head sort.`);
}

function fillExceptions(all) {
  const rows = [...all.exceptions].filter(([, growth]) => growth > 0).sort(([, a], [, b]) => b - a);
  fill($("raised"), rows.slice(0, MOST_ROWS).map(([key, growth]) => ({ key, growth, texts: JSON.parse(key) })), [
    (cell, { texts }) => show(cell, texts[0] || "–"),
    (cell, { texts }) => show(cell, texts[1] || "–"),
    (cell, { growth }) => show(cell, count(growth)),
  ]);
  const raised = rows.reduce((so, [, growth]) => so + growth, 0);
  show($("exceptions"), count(raised), raised > 0);
  show($("raised-note"), rows.length ? "" : "No exceptions in this time.");
  show($("raised-caption"), `Exceptions of the last ${time(all.seconds)}, the most frequent first.`);
}

function fillHealth(now, all) {
  const age = now.at - now.own.pdc_last_flush_timestamp_seconds;
  const batches = all.own.get("pdc_flush_duration_seconds_count");
  show($("storage"), now.storage);
  show($("workers"), count(now.workers));
  show($("in-progress"), count(now.in_progress));
  show($("reached"), time(now.seconds));
  show($("batch"), isNaN(age) ? "none" : age < 1 ? "now" : `${time(age)} ago`);
  show($("mean"), batches ? time(all.own.get("pdc_flush_duration_seconds_sum") / batches) : "–");
  const isDown = now.own.pdc_storage_up === 0;
  show($("up"), isDown ? "no" : "yes", isDown);
  for (const cell of document.querySelectorAll("[data-gauge]")) {
    const value = now.own[cell.dataset.gauge];
    show(cell, count(value), value > 0);
  }
  for (const cell of document.querySelectorAll("[data-counter]")) {
    const growth = all.own.get(cell.dataset.counter) ?? 0;
    show(cell, `${count(growth)}, in all ${count(now.own[cell.dataset.counter])}`, growth > 0);
  }
}

function render() {
  if (before === null) return;
  const span = Number(document.querySelector("[name=window]:checked").value);
  const within = steps.filter((step) => step.at - step.seconds >= before.at - span);
  const chosen = within.length ? within : steps.slice(-1);  // a step may be longer: after a pause, or of a slow server
  const all = sum(chosen);
  fillHealth(before, all);
  if (!chosen.length) return;
  const { rate, errors, ...times } = rowOfAll(all);
  show($("rate"), short(rate));
  show($("errors"), share(errors), errors >= BAD);
  for (const [name, value] of Object.entries(times)) show($(name), time(value));
  drawAll(chosen);
  fillRoutes(all, chosen);
  fillExceptions(all);
}

// --- Polling

function state(text, name) {
  show($("state"), text);
  $("state").parentElement.className = `status ${name}`;
}

// An address of this server, also for a path that begins with two slashes; without a password that the location may have.
function address(path, query = "") {
  const url = new URL(location.origin);
  [url.pathname, url.search] = [path, query];
  return url;
}

// The counts, or an error whose message is for people.
async function read() {
  const url = address(location.pathname, location.search);
  url.searchParams.set("counts", "");
  const options = { cache: "no-store", redirect: "manual", signal: AbortSignal.timeout(30_000) };
  const response = await fetch(url, options).catch(() => { throw new Error("The server does not answer"); });
  const type = response.headers.get("Content-Type") ?? "";
  if (type.startsWith("application/json")) return named(await response.json());
  if (response.type === "opaqueredirect" || [401, 403].includes(response.status)) {
    throw new Error("The server no longer shows you metrics, reload the page");
  }
  const isOurs = response.status === 503 && type.startsWith("text/plain");
  const reason = isOurs ? (await response.text()).replace(/^# /gm, "").trim() : `the server answers with status ${response.status}`;
  throw new Error(`The storage cannot be read: ${reason}`);
}

async function poll() {
  if (isBusy) return;
  isBusy = true;
  const began = performance.now();
  try {
    const now = await read();
    if (before !== null && now.at > before.at) steps.push(stepOf(before, now));
    before = now;
    steps = steps.filter((step) => step.at > now.at - KEPT && step.at <= now.at);  // the clock of the storage may be set back
    state("Live", "live");
    show($("updated"), `numbers of ${new Date(1000 * now.at).toLocaleTimeString()}`);
    render();
  } catch (error) {
    state(`${error.message}; trying again`, "down");
    show($("reached"), "failed", true);
  }
  isBusy = false;
  plan(Math.max(steps.length || before === null ? EVERY : 2, (performance.now() - began) / 100));
}

// Polls after so many seconds, unless nobody looks.
function plan(seconds) {
  clearTimeout(timer);
  if (isPaused()) state("Paused", "");
  else if (!document.hidden) timer = setTimeout(poll, 1000 * seconds);
}

$("pause").addEventListener("click", () => {
  $("pause").setAttribute("aria-pressed", String(!isPaused()));
  plan(0);
});
document.addEventListener("visibilitychange", () => plan(0));
$("windows").addEventListener("change", render);
$("filter").addEventListener("input", render);
for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const by = button.dataset.sort;
    sorting = { by, down: by === sorting.by ? !sorting.down : by !== "key" };
    document.querySelector("[aria-sort]").removeAttribute("aria-sort");
    button.parentElement.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    render();
  });
}
$("metrics").href = address(location.pathname.replace(/\/dashboard\/?$/, ""));
poll();
