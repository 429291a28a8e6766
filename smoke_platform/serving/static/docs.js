"use strict";
// Renders /openapi.json. Text only ever enters as textContent.

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function block(title, content) {
  const box = element("div");
  box.append(element("p", title, "muted"));
  const pre = element("pre");
  pre.append(element("code", typeof content === "string" ? content : JSON.stringify(content, null, 2)));
  box.append(pre);
  return box;
}

function curl(method, path, example) {
  const where = `${location.origin}${path}`;
  if (method === "get") return `curl ${where}`;
  const body = example === undefined ? "" : ` \\\n  -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(example)}'`;
  return `curl -X POST ${where}${body}`;
}

function operation(method, path, described) {
  const box = element("details");
  const head = element("summary");
  head.append(element("b", method.toUpperCase()), element("code", path), element("span", described.summary || "", "muted"));
  box.append(head);
  if (described.description) box.append(element("p", described.description.replaceAll("`", "")));
  const content = described.requestBody ? described.requestBody.content["application/json"] : undefined;
  box.append(block("Example", curl(method, path, content && content.example)));
  if (content) box.append(block("Request", content.schema));
  for (const [status, answer] of Object.entries(described.responses)) {
    const schema = answer.content && answer.content["application/json"] && answer.content["application/json"].schema;
    const detailed = status === "200" && schema && schema.properties;
    box.append(detailed ? block(`${status}: ${answer.description}`, schema) : element("p", `${status}: ${answer.description}`));
  }
  return box;
}

async function start() {
  const described = await (await fetch("/openapi.json")).json();
  const groups = new Map();
  for (const [path, item] of Object.entries(described.paths)) {
    for (const [method, entry] of Object.entries(item)) {
      const name = (entry.tags || ["other"])[0];
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(operation(method, path, entry));
    }
  }
  for (const [name, operations] of groups) {
    const panel = element("section", undefined, "panel");
    panel.append(element("h2", name), ...operations);
    document.getElementById("groups").append(panel, element("p"));
  }
}

start();
