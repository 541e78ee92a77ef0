// Elements and number formats. Content of a run becomes text nodes and attribute values, never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PICTURES = JSON.parse(document.getElementById("pictures").textContent);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child != null && child !== false));
  return element;
}

const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function number(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replace("-", "−");
  const text = size >= 1000 ? Math.round(value).toString() : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3);
  return text.replace("-", "−");
}

const score = (value) => (value == null ? "–" : value.toFixed(3).replace(/^-(?=[0.]*$)/, "").replace("-", "−"));

const signed = (value, text = score) => {
  const shown = text(value);
  return (value > 0 && /[1-9]/.test(shown) ? "+" : "") + shown;
};

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : word.endsWith("x") ? "es" : "s"}`;

function mean(values) {
  const known = values.filter((value) => value != null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function duration(seconds) {
  if (seconds == null) return null;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// Text that a click copies. Pages from file:// may have no clipboard object, so a selected text field is the fallback.
async function copy(text, holder) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = h("textarea", { class: "offscreen", readonly: true });
    field.value = text;
    holder.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

function copyable(text, shown = text) {
  const label = h("span", { class: "hostile" }, shown);
  const button = h("button", { type: "button", class: "copy", title: `copy ${text}`, "aria-label": `copy ${text}` }, label);
  button.addEventListener("click", async () => {
    await copy(text, button.parentElement);
    label.textContent = "copied";
    setTimeout(() => (label.textContent = shown), 1200);
    button.focus();
  });
  return button;
}

// The beginning of a name, without the hash that Roboflow appends. A click copies the whole name.
function shorten(text, most) {
  const plain = text.replace(/\.rf\.[0-9A-Za-z]{8,}(?=\.\w+$|$)/, "");
  return plain.length > most ? `${plain.slice(0, most - 1)}…` : plain;
}

// Whether the id of an image is neither the name of its file nor that name without suffix.
const idIsNews = (subject, name) => subject.image_id !== name && subject.image_id !== name?.replace(/\.\w+$/, "");

// The file of an image, by its name, and the ids of its record. A click copies the whole path or the id.
function origin(subject) {
  const name = subject.file?.split(/[\\/]/).pop();
  return [
    subject.file && copyable(subject.file, shorten(name || subject.file, 60)),
    idIsNews(subject, name) && copyable(subject.image_id, `image ${shorten(subject.image_id, 40)}`),
    copyable(String(subject.sample), `sample ${subject.sample}`)];
}

// What the task asked, and the whole chat as the processor gets it.
function prompt(subject, open = false) {
  const question = DATA.prompts[subject.question], whole = DATA.prompts[subject.prompt];
  if (question == null) return null;
  return h("details", { class: "prompt", open }, h("summary", {}, "prompt"),
    h("pre", { class: "hostile", tabindex: "0" }, question),
    whole != null && h("details", {}, h("summary", {}, "whole chat, as the processor gets it"), h("pre", { class: "hostile", tabindex: "0" }, whole)));
}

// A switch between views: one button each, with one pressed.
function switcher(label, options, change) {
  const buttons = options.map(([value, text]) =>
    h("button", { type: "button", "aria-pressed": "false", onclick: () => choose(value) }, text));
  function choose(value) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(options[i][0] === value)));
    change(value);
  }
  const element = h("div", { class: "switcher", role: "group", "aria-label": label }, buttons);
  return { element, choose };
}
