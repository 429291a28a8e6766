"use strict";
// The console: asks the API every two seconds and shows what it answers. Text only ever enters as textContent.

const $ = (id) => document.getElementById(id);
const EVERY_MS = 2000;
const COLUMNS = ["temperature_c", "humidity_pct", "tvoc_ppb", "eco2_ppm", "pm1_0", "pm2_5", "co_ppm", "raw_h2", "raw_ethanol"];
let sensors = {};
let modelShown = null;
let devices = [];
let windowsOf = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function facts(list, pairs) {
  list.replaceChildren();
  for (const [name, value] of pairs) {
    if (value === undefined || value === null || value === "") continue;
    list.append(element("dt", name), element("dd", value));
  }
}

function number(value, digits = 2) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  return value.toLocaleString("en", { maximumFractionDigits: size >= 1000 ? 0 : size >= 100 ? 1 : digits });
}

function ago(iso) {
  if (!iso) return "never";
  const seconds = Math.max(0, (Date.now() - Date.parse(iso)) / 1000);
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return iso.slice(0, 10);
}

function clock(iso) {
  return new Date(iso).toLocaleTimeString([], { hour12: false });
}

async function ask(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.error ? body.error.detail : answer.statusText), { fault: body.error });
  return body;
}

function post(path, body) {
  return ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

// -- state of the platform ----------------------------------------------------------------------------------

function percent(value) {
  return typeof value === "number" ? `${(100 * value).toFixed(1)} %` : undefined;
}

function described(trainedOn) {
  if (!trainedOn) return undefined;
  if (typeof trainedOn === "string") return trainedOn;
  return trainedOn.kind;
}

async function showModel(part) {
  $("model-version").textContent = part.version === null ? "none" : `version ${part.version}`;
  if (part.version === null) {
    modelShown = null;
    facts($("model-facts"), [["state", "not loaded"]]);
    return;
  }
  const key = `${part.version} ${part.loaded_at}`;
  if (modelShown === key) return;
  const info = await ask("/model/info");
  modelShown = key;
  facts($("model-facts"), [
    ["algorithm", info.algorithm],
    ["trained on", described(info.trained_on)],
    ["accuracy", percent(info.metrics.accuracy)],
    ["F1 of fire", percent(info.metrics.f1)],
    ["threshold", number(info.threshold, 3)],
    ["features", String(info.feature_names.length)],
    ["promoted", info.promoted_at ? info.promoted_at.slice(0, 16).replace("T", " ") : undefined],
    ["SHA-256", info.sha256.slice(0, 12)],
  ]);
}

function showLanding(part) {
  $("landing-rate").textContent = number(part.per_second, 1);
  facts($("landing-facts"), [
    ["state", part.detail || part.state],
    ["last landed", ago(part.last_landed)],
    ["devices reporting", String(part.devices)],
  ]);
}

function showPredictions(stats) {
  $("prediction-count").textContent = number(stats.predictions);
  facts($("prediction-facts"), [
    ["fire", number(stats.by_label.fire)],
    ["no fire", number(stats.by_label.no_fire)],
    ["time p50", stats.processing_ms.p50 === undefined ? undefined : `${stats.processing_ms.p50.toFixed(3)} ms`],
    ["time p99", stats.processing_ms.p99 === undefined ? undefined : `${stats.processing_ms.p99.toFixed(3)} ms`],
  ]);
  $("recent-empty").hidden = stats.recent.length > 0;
  $("recent-rows").replaceChildren(...stats.recent.map((entry) => {
    const row = element("tr");
    const fire = entry.label === "fire";
    row.append(
      element("td", clock(entry.at)), element("td", entry.device_id || "unnamed"),
      element("td", (fire ? "fire" : "no fire") + (entry.cold ? ", cold" : ""), fire ? "fire" : ""),
      element("td", percent(entry.probability), "num"), element("td", entry.processing_ms.toFixed(2), "num"),
      element("td", entry.model_version),
    );
    return row;
  }));
}

function showDevices() {
  const wanted = $("device-filter").value.trim().toLowerCase();
  const shown = devices.filter((entry) => entry.device_id.toLowerCase().includes(wanted)).slice(0, 200);
  $("device-rows").replaceChildren(...shown.map((entry) => {
    const row = element("tr");
    const open = element("button", entry.device_id, "quiet small");
    Object.assign(open, { type: "button", title: "Statistics over five minutes" });
    open.addEventListener("click", () => chooseWindows(entry.device_id));
    const name = element("td");
    name.append(open);
    row.append(name, element("td", ago(entry.event_time)));
    for (const name of COLUMNS) row.append(element("td", number(entry[name]), "num"));
    const label = entry.fire_alarm === null ? "" : entry.fire_alarm ? "fire" : "no";
    row.append(element("td", label, entry.fire_alarm ? "fire" : "muted"), element("td", entry.source, "muted"));
    return row;
  }));
}

// -- windows of one device -----------------------------------------------------------------------------------

async function chooseWindows(device) {
  windowsOf = device;
  $("windows").hidden = false;
  $("windows-device").textContent = device;
  $("windows-rows").replaceChildren();
  await showWindows();
  $("windows").focus();
}

async function showWindows() {
  const device = windowsOf;
  if (device === null) return;
  let found = [];
  let note = "means; the first one is still open";
  try {
    found = (await ask(`/devices/${encodeURIComponent(device)}/windows?limit=30`)).windows;
    if (!found.length || !found[0].open) note = "means";
  } catch (error) {
    note = error.message;
  }
  if (device !== windowsOf) return;
  $("windows-note").textContent = note;
  const measured = COLUMNS.filter((name) => found.some((entry) => entry.sensors[name]));
  const head = [["Window", ""], ["Records", ""], ["Complete", ""], ["Quality", ""], ...measured.map((name) => [name, unitOf(name)]), ["Level", ""]];
  $("windows-head").replaceChildren(...head.map(([name, unit], place) => {
    const cell = element("th", name, place > 0 && place < head.length - 1 ? "num" : "");
    if (unit) cell.append(element("small", unit));
    return cell;
  }));
  $("windows-rows").replaceChildren(...found.map((entry) => {
    const row = element("tr", undefined, entry.open ? "muted" : "");
    row.append(
      element("td", `${clock(entry.window_start)} to ${clock(entry.window_end)}${entry.open ? ", open" : ""}`),
      element("td", number(entry.record_count), "num"), element("td", percent(entry.completeness), "num"),
      element("td", number(entry.quality_score, 0), "num"),
    );
    for (const name of measured) row.append(element("td", entry.sensors[name] ? number(entry.sensors[name].mean) : "", "num"));
    const bad = entry.level === "high" || entry.level === "critical";
    row.append(element("td", entry.level_sensor ? `${entry.level}, ${entry.level_sensor}` : "", bad ? "fire" : ""));
    return row;
  }));
}

function showHealth(health) {
  const model = health.parts.model;
  const pill = $("overall");
  pill.textContent = health.status;
  pill.className = `pill ${health.status === "ok" ? "ok" : model.state === "missing" ? "bad" : ""}`;
  const notices = [];
  if (model.state === "missing") notices.push(`No model: ${model.detail}`);
  if (model.state === "refused") notices.push(`Version ${model.version} serves on. What is published now is refused: ${model.detail}`);
  if (health.parts.landing.state === "error") notices.push(`Landing: ${health.parts.landing.detail}`);
  $("notice").hidden = notices.length === 0;
  $("notice").textContent = notices.join("\n");
  $("stamp").textContent = `smoke-platform ${health.version}, up ${number(health.uptime_s / 60, 0)} min`;
}

async function refresh() {
  if (document.hidden) return;
  try {
    const [health, view, stats] = await Promise.all([ask("/health"), ask("/devices"), ask("/predictions/stats")]);
    showHealth(health);
    showLanding(health.parts.landing);
    showPredictions(stats);
    devices = view.last;
    $("device-count").textContent = view.devices > view.last.length
      ? `${view.devices} reported within ${view.window_s / 60} min, the first ${view.last.length} are listed`
      : `${view.devices} reported within ${view.window_s / 60} min`;
    $("device-empty").hidden = devices.length > 0;
    $("device-empty").textContent = view.detail;
    showDevices();
    await showModel(health.parts.model);
    await showWindows();
  } catch (error) {
    $("overall").textContent = "not reachable";
    $("overall").className = "pill bad";
    $("notice").hidden = false;
    $("notice").textContent = `The API does not answer: ${error.message}`;
  }
}

// -- trying a reading ----------------------------------------------------------------------------------------

function unitOf(name) {
  const found = /\[([^\]]+)\]/.exec(sensors[name].description);
  return found ? found[1] : "";
}

function buildForm(schema) {
  for (const [name, field] of Object.entries(schema.properties)) {
    if (field.minimum === undefined || name === "sequence") continue;
    sensors[name] = field;
    const label = element("label", `${name} [${unitOf(name)}]`);
    const input = element("input");
    Object.assign(input, { type: "number", step: "any", name, min: field.minimum, max: field.maximum, title: field.description });
    label.append(input);
    $("fields").append(label);
  }
  const head = [["Device", ""], ["Measured", ""], ...COLUMNS.map((name) => [name, unitOf(name)]), ["Label", ""], ["Source", ""]];
  $("device-head").replaceChildren(...head.map(([name, unit], place) => {
    const cell = element("th", name, place > 1 && place < head.length - 2 ? "num" : "");
    if (unit) cell.append(element("small", unit));
    return cell;
  }));
}

function fill(reading) {
  for (const name of Object.keys(sensors)) $("try").elements[name].value = reading[name] ?? "";
}

function showVerdict(prediction) {
  const fire = prediction.label === "fire";
  $("verdict").hidden = false;
  $("verdict-bar").parentElement.hidden = false;
  $("verdict-bar").parentElement.className = fire ? "bar fire" : "bar";
  $("verdict-bar").style.width = `${100 * prediction.probability}%`;
  $("verdict-threshold").style.left = `${100 * prediction.threshold}%`;
  $("verdict-label").textContent = fire ? "Fire" : "No fire";
  $("verdict-label").className = fire ? "fire" : "";
  $("verdict-text").textContent = `${percent(prediction.probability)} against a threshold of ` +
    `${percent(prediction.threshold)}, model ${prediction.model_version}, ${prediction.processing_ms.toFixed(2)} ms`;
  const notes = [...prediction.warnings];
  if (prediction.cold) notes.unshift("cold: one reading alone says nothing of how the air has changed");
  if (prediction.readings > 1) notes.unshift(`after ${prediction.readings} readings of one device`);
  $("verdict-warnings").replaceChildren(...notes.map((note) => element("li", note)));
}

function showFault(error) {
  $("verdict").hidden = false;
  $("verdict-bar").parentElement.hidden = true;
  $("verdict-label").textContent = error.fault && error.fault.field ? error.fault.field : "Not answered";
  $("verdict-label").className = "fire";
  $("verdict-text").textContent = error.message;
  $("verdict-warnings").replaceChildren(...(error.fault ? [element("li", error.fault.remedy)] : []));
  const field = error.fault && $("try").elements[error.fault.field];
  if (field) field.classList.add("wrong");
}

async function attempt(body) {
  for (const input of $("fields").querySelectorAll("input")) input.classList.remove("wrong");
  try {
    showVerdict(await post("/predict", body));
  } catch (error) {
    showFault(error);
  }
  await refresh();
}

$("try").addEventListener("submit", (event) => {
  event.preventDefault();
  const reading = { device_id: "console" };
  for (const name of Object.keys(sensors)) {
    const given = $("try").elements[name].value;
    if (given !== "") reading[name] = Number(given);
  }
  attempt(reading);
});
$("device-filter").addEventListener("input", showDevices);
$("windows-close").addEventListener("click", () => {
  windowsOf = null;
  $("windows").hidden = true;
});
$("fill-none").addEventListener("click", () => fill({}));
$("fill-quiet").addEventListener("click", async () => fill((await ask("/predict/sample")).request));
$("fill-fire").addEventListener("click", async () => fill((await ask("/predict/fire-scenario")).request.at(-20)));
$("play-fire").addEventListener("click", async () => {
  const { request } = await ask("/predict/fire-scenario");
  fill(request.at(-1));
  await attempt(request);
});

async function start() {
  const [schema, config] = await Promise.all([ask("/sensors/schema"), ask("/config")]);
  buildForm(schema);
  $("dagster").href = `${location.protocol}//${location.hostname}:${config.settings.SMOKE_DAGSTER_PORT}`;
  await refresh();
  if (modelShown !== null) fill((await ask("/predict/sample")).request);
  setInterval(refresh, EVERY_MS);
  document.addEventListener("visibilitychange", refresh);
}

start().catch((error) => {
  $("overall").textContent = "not reachable";
  $("overall").className = "pill bad";
  $("notice").hidden = false;
  $("notice").textContent = error.message;
});
