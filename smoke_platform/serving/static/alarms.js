"use strict";
// The alarms panel: asks every second what stands and whether that can be trusted. Text only enters as textContent.
// Helpers ($, element, ask, ago) are those of console.js.

const ALARM_ROWS = 200;
const ALARMS_EVERY_MS = 1000;
const MARKS = { critical: "‼", high: "!", medium: "▲", low: "•" };
const VERBS = {
  acknowledge: { title: "Acknowledge", fits: (it) => it.live && !it.acknowledged },
  snooze: { title: "Snooze", fits: (it) => it.state === "active" || it.state === "acknowledged", reason: true, minutes: true },
  wake: { title: "Wake", fits: (it) => it.state === "snoozed" },
  reset: { title: "Reset", fits: (it) => it.state === "cleared" || it.state === "latched" },
  unshelve: { title: "Unshelve", fits: (it) => it.state === "shelved" },
  enable: { title: "Enable", fits: (it) => it.state === "disabled" },
};
const alarmRows = new Map();
let asked = null;
let lastHeard = null;
let liveBefore = null;

function kindWords(kind) {
  return kind.replaceAll("_", " ");
}

function alarmName(alarm) {
  return `${kindWords(alarm.kind)} alarm of ${alarm.device_id}`;
}

function alarmCells(alarm, row) {
  const badge = element("span", `${MARKS[alarm.severity] || "?"} ${alarm.severity}`, "severity");
  const severity = element("td");
  severity.append(badge);
  const device = element("td", undefined, "wide");
  device.append(element("strong", alarm.device_id));
  const where = [alarm.site, alarm.room].filter(Boolean).join(" / ");
  if (where) device.append(element("small", where));
  const state = element("td", alarm.state_words);
  if (alarm.verdict) state.append(element("small", `verdict: ${kindWords(alarm.verdict)}`));
  const since = element("td", "");
  since.title = alarm.since || alarm.at || "";
  const actions = element("div", undefined, "actions");
  const last = element("td");
  last.append(actions);
  for (const [verb, facts] of Object.entries(VERBS)) {
    if (!facts.fits(alarm)) continue;
    const button = element("button", facts.title, verb === "acknowledge" ? "small" : "small quiet");
    button.type = "button";
    button.dataset.verb = verb;
    button.setAttribute("aria-label", `${facts.title}: ${alarmName(alarm)}`);
    button.addEventListener("click", () => openDialog(verb, alarm));
    actions.append(button);
  }
  row.replaceChildren(
    severity, element("td", kindWords(alarm.kind)), device, state, since, element("td", alarm.why, "wide"), last,
  );
  row.className = MARKS[alarm.severity] && alarm.live ? `alarm-${alarm.severity}` : "";
  row.sinceCell = since;
}

function showAlarmRows(alarms) {
  const shown = [];
  const held = document.activeElement;
  for (const alarm of alarms) {
    const key = JSON.stringify([alarm.device_id, alarm.kind]);
    const row = alarmRows.get(key) || element("tr");
    const signature = `${alarm.topic_id} ${alarm.alarm_id} ${alarm.revision}`;
    if (row.signature !== signature) alarmCells(alarm, row);
    row.signature = signature;
    row.sinceCell.textContent = ago(alarm.since || alarm.at);
    row.key = key;
    shown.push(row);
  }
  const body = $("alarm-rows");
  const same = body.children.length === shown.length && shown.every((row, place) => body.children[place] === row);
  if (!same) {
    body.replaceChildren(...shown);
    // A button that is moved loses the keyboard's focus.
    if (held && held.isConnected && body.contains(held)) held.focus();
  }
  alarmRows.clear();
  for (const row of shown) alarmRows.set(row.key, row);
}

function listed(counts) {
  return Object.entries(counts).map(([name, count]) => `${count.toLocaleString("en")} ${kindWords(name)}`).join(", ");
}

function showAlarms(page, status) {
  const { counts } = page;
  showAlarmRows(page.alarms);
  $("alarm-table").hidden = page.alarms.length === 0;
  const worst = ["critical", "high", "medium", "low"].filter((name) => counts.severity[name]);
  $("alarm-count").textContent = page.ready
    ? `${counts.live.toLocaleString("en")} live${counts.live ? ` (${listed(Object.fromEntries(worst.map((name) => [name, counts.severity[name]])))})` : ""}, ` +
      `${counts.unacknowledged.toLocaleString("en")} not acknowledged; ${counts.aside.toLocaleString("en")} shelved or disabled`
    : "not known yet";
  $("alarm-more").hidden = page.matching <= page.alarms.length;
  $("alarm-more").textContent = `The first ${page.alarms.length.toLocaleString("en")} of ${page.matching.toLocaleString("en")} are listed. ` +
    `All live ones by kind: ${listed(counts.kind)}. Narrow the list with the filters.`;
  showProblems(status.problems);
  showEmpty(page, status);
  document.title = page.ready && counts.live ? `(${counts.live}) Smoke detection platform` : "Smoke detection platform";
  if (liveBefore !== null && counts.live > liveBefore) {
    $("alarm-spoken").textContent = `${counts.live - liveBefore} more live alarms, ${counts.live} in all`;
  }
  if (page.ready) liveBefore = counts.live;
}

function showProblems(problems) {
  const text = problems.join("\n");
  $("alarm-problems").hidden = problems.length === 0;
  // Unchanged text is left alone: a screen reader would read it out again each second.
  if ($("alarm-problems").textContent !== text) $("alarm-problems").textContent = text;
}

function showEmpty(page, status) {
  const empty = $("alarm-empty");
  const sure = page.ready && status.current && status.judging;
  const filtered = $("alarm-kind").value || $("alarm-filter").value.trim();
  let text = "";
  if (!page.ready) text = "The alarms have not been read yet: nothing is known.";
  else if (page.alarms.length > 0) text = "";
  else if ($("alarm-state").value === "aside" && !filtered) text = "None is shelved or disabled.";
  else if (page.counts.live > 0) text = `No alarm fits the filter; ${page.counts.live.toLocaleString("en")} are live.`;
  else text = sure ? "No live alarms. The readings are being judged." : "No live alarm is known, but that cannot be relied on now: see above.";
  empty.hidden = text === "";
  empty.className = sure && page.counts.live === 0 ? "empty good" : "empty unsure";
  if (empty.textContent !== text) empty.textContent = text;
}

async function refreshAlarms() {
  const query = new URLSearchParams({ limit: String(ALARM_ROWS), state: $("alarm-state").value });
  if ($("alarm-kind").value) query.set("kind", $("alarm-kind").value);
  if ($("alarm-filter").value.trim()) query.set("device", $("alarm-filter").value.trim());
  try {
    const [page, status] = await Promise.all([ask(`/alarms?${query}`), ask("/alarms/status")]);
    lastHeard = new Date();
    showAlarms(page, status);
  } catch (error) {
    const since = lastHeard ? `What is listed is of ${lastHeard.toLocaleTimeString([], { hour12: false })}.` : "Nothing is known.";
    showProblems([`The alarms cannot be asked for: ${error.message}. ${since}`]);
    $("alarm-count").textContent = "not known";
    $("alarm-empty").hidden = $("alarm-rows").children.length > 0;
    $("alarm-empty").className = "empty unsure";
    $("alarm-empty").textContent = "Whether there are alarms is not known.";
  }
}

async function followAlarms() {
  await refreshAlarms();
  // Only when the last answer is there: a slow service is not asked twice at once.
  setTimeout(followAlarms, ALARMS_EVERY_MS);
}

// -- handling ------------------------------------------------------------------------------------------------

function openDialog(verb, alarm) {
  const facts = VERBS[verb];
  asked = { verb, alarm };
  $("alarm-dialog-title").textContent = `${facts.title}: ${alarmName(alarm)}`;
  $("alarm-minutes-field").hidden = !facts.minutes;
  $("alarm-reason").required = Boolean(facts.reason);
  $("alarm-reason-hint").textContent = facts.reason ? "" : "(optional)";
  $("alarm-by").value = sessionStorage.getItem("alarm-by") || "";
  $("alarm-token").value = sessionStorage.getItem("alarm-token") || "";
  $("alarm-reason").value = "";
  $("alarm-fault").hidden = true;
  $("alarm-dialog").showModal();
  ($("alarm-by").value ? $("alarm-reason") : $("alarm-by")).focus();
}

function dialogFault(text) {
  $("alarm-fault").hidden = false;
  $("alarm-fault").textContent = text;
}

async function sendCommand() {
  const { verb, alarm } = asked;
  const by = $("alarm-by").value.trim();
  const reason = $("alarm-reason").value.trim();
  if (!by) return dialogFault("Your name is needed: the audit trail says who asked.");
  if ($("alarm-reason").required && !reason) return dialogFault("A reason is needed: who comes after you has to know.");
  const body = { verb, by, reason };
  if (VERBS[verb].minutes) body.for_s = 60 * Number($("alarm-minutes").value);
  const token = $("alarm-token").value.trim();
  sessionStorage.setItem("alarm-by", by);
  const path = alarm.alarm_id
    ? `/alarms/${encodeURIComponent(alarm.alarm_id)}/commands`
    : `/devices/${encodeURIComponent(alarm.device_id)}/alarms/${encodeURIComponent(alarm.kind)}/commands`;
  $("alarm-send").disabled = true;
  $("alarm-fault").hidden = true;
  try {
    const answer = await ask(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
      body: JSON.stringify(body),
    });
    sessionStorage.setItem("alarm-token", token);
    $("alarm-dialog").close();
    $("alarm-said").hidden = false;
    $("alarm-said").className = answer.status === "done" ? "notice good" : "notice";
    $("alarm-said").textContent = `${answer.status === "done" ? "" : "Queued: "}${answer.detail}`;
  } catch (error) {
    if (error.fault && error.fault.reason === "unauthorized") sessionStorage.removeItem("alarm-token");
    dialogFault(error.fault ? `${error.message}. ${error.fault.remedy}` : error.message);
  } finally {
    $("alarm-send").disabled = false;
  }
  await refreshAlarms();
}

$("alarm-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sendCommand();
});
$("alarm-cancel").addEventListener("click", () => $("alarm-dialog").close());
for (const id of ["alarm-state", "alarm-kind"]) $(id).addEventListener("change", refreshAlarms);
$("alarm-filter").addEventListener("input", refreshAlarms);
followAlarms();
