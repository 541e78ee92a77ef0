// The rollout browser: filters, pages of groups, and the details of one group.

const PAGE = 28;

const categoryOf = (subject) => (typeof subject.target === "string" ? subject.target : subject.query);

const GROUPS = DATA.groups.map((group, index) => {
  const rewards = group.answers.map((answer) => answer.reward);
  const known = rewards.filter((reward) => reward != null);
  return {
    ...group,
    index,
    category: categoryOf(group),
    mean: mean(rewards),
    spread: known.length ? Math.max(...known) - Math.min(...known) : 0,
    unreadable: group.answers.filter((answer) => !answer.valid).length,
    text: [group.query, group.file ?? "", isBoxes(group.target) ? group.target.map(([, label]) => label).join(" ") : group.target, group.image_id, ...group.answers.map((answer) => answer.completion)].join("\n").toLowerCase(),
  };
});

const REWARDS = GROUPS.flatMap((group) => group.answers.map((answer) => answer.reward)).filter((reward) => reward != null);
const HIGHEST = REWARDS.reduce((most, reward) => Math.max(most, reward), 0.001);
const LOWEST = REWARDS.reduce((least, reward) => Math.min(least, reward), 0);

const ORDERS = {
  first: ["first rollouts", (a, b) => a.index - b.index],
  last: ["last rollouts", (a, b) => b.rollout - a.rollout || a.index - b.index],
  best: ["highest reward", (a, b) => (b.mean ?? -Infinity) - (a.mean ?? -Infinity) || a.index - b.index],
  worst: ["lowest reward", (a, b) => (a.mean ?? Infinity) - (b.mean ?? Infinity) || a.index - b.index],
  spread: ["largest spread", (a, b) => b.spread - a.spread || a.index - b.index],
};

function best(group) {
  return group.answers.reduce((found, answer) => ((answer.reward ?? -Infinity) > (found.reward ?? -Infinity) ? answer : found));
}

function bars(group) {
  const width = 100 / group.answers.length;
  const level = (reward) => Math.max(6, (100 * ((reward ?? LOWEST) - LOWEST)) / (HIGHEST - LOWEST));
  return svg("svg", { class: "bars", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    group.answers.map((answer, i) => svg("rect", { class: answer.valid ? null : "unreadable", x: i * width + 0.12 * width, width: 0.76 * width, y: 100 - level(answer.reward), height: level(answer.reward) })));
}

function counts(values) {
  const found = new Map();
  for (const value of values) found.set(value, (found.get(value) ?? 0) + 1);
  return [...found].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
}

const brief = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function select(label, id, options) {
  const control = h("select", { id }, options.map(([value, text]) => h("option", { value }, text)));
  return [h("label", { class: "field" }, h("span", {}, label), control), control];
}

function input(label, id, attributes) {
  const control = h("input", { id, ...attributes });
  return [h("label", { class: `field${attributes.type === "checkbox" ? " check" : ""}` }, h("span", {}, label), control), control];
}

// The most common reasons why answers are not valid, without the numbers and texts in which they differ.
function reasons() {
  const problems = GROUPS.flatMap((group) => group.answers).filter((answer) => !answer.valid && answer.problem).map((answer) => answer.problem);
  if (!problems.length) return null;
  const kind = (text) => text.replace(/'[^']*'|"[^"]*"|-?[0-9][0-9.e+]*/g, "…");
  const examples = new Map(problems.map((text) => [kind(text), text]));
  const ranked = counts(problems.map(kind));
  return h("details", { class: "reasons" }, h("summary", {}, `why ${plural(problems.length, "answer")} can't be read or ${problems.length === 1 ? "is" : "are"} not in the format`),
    h("ul", {}, ranked.slice(0, 12).map(([name, count]) => h("li", { class: "hostile" }, h("b", {}, `${count.toLocaleString("en")} × `), count === 1 ? examples.get(name) : name))),
    ranked.length > 12 && h("p", { class: "quiet" }, `and ${plural(ranked.length - 12, "rarer reason")}`));
}

function rolloutBrowser() {
  const rollouts = GROUPS.map((group) => group.rollout);
  const [from, fromBox] = input("from rollout", "from", { type: "number", min: rollouts[0], placeholder: rollouts[0], inputmode: "numeric" });
  const [to, toBox] = input("to rollout", "to", { type: "number", min: rollouts[0], placeholder: rollouts[rollouts.length - 1], inputmode: "numeric" });
  const [lowest, lowestBox] = input("mean reward from", "lowest", { type: "number", step: "any", placeholder: number(LOWEST) });
  const [highest, highestBox] = input("to", "highest", { type: "number", step: "any", placeholder: number(HIGHEST) });
  const categories = counts(GROUPS.map((group) => group.category));
  const [category, categoryBox] = select("category", "category", [["", `all ${categories.length}`], ...categories.map(([name, count], i) => [i, `${brief(name, 60)} (${count})`])]);
  const tasks = counts(GROUPS.map((group) => group.task));
  const [task, taskBox] = select("task", "task", [["", `all ${tasks.length}`], ...tasks.map(([name, count], i) => [i, `${name} (${count})`])]);
  const [order, orderBox] = select("order", "order", Object.entries(ORDERS).map(([name, [text]]) => [name, text]));
  const [words, wordsBox] = input("text in an answer or a file name", "words", { type: "search", placeholder: "any" });
  const [unreadable, unreadableBox] = input("with answers that can't be read", "unreadable", { type: "checkbox" });
  const [equal, equalBox] = input("all answers earn the same", "equal", { type: "checkbox" });
  const status = h("p", { class: "quiet", role: "status" });
  const list = h("ul", { class: "groups" });
  const pager = h("div", { class: "pager" });
  let found = [];
  let page = 0;

  const bound = (box, otherwise) => (box.value === "" || Number.isNaN(box.valueAsNumber) ? otherwise : box.valueAsNumber);
  function filter() {
    const asked = categoryBox.value === "" ? null : categories[categoryBox.value][0];
    const askedTask = taskBox.value === "" ? null : tasks[taskBox.value][0];
    const text = wordsBox.value.toLowerCase();
    const limits = [bound(fromBox, -Infinity), bound(toBox, Infinity), bound(lowestBox, -Infinity), bound(highestBox, Infinity)];
    found = GROUPS.filter((group) =>
      group.rollout >= limits[0] && group.rollout <= limits[1] &&
      (group.mean ?? 0) >= limits[2] && (group.mean ?? 0) <= limits[3] &&
      (asked == null || group.category === asked) && (askedTask == null || group.task === askedTask) &&
      (!text || group.text.includes(text)) &&
      (!unreadableBox.checked || group.unreadable) && (!equalBox.checked || group.spread === 0)
    ).sort(ORDERS[orderBox.value][1]);
    page = 0;
    show();
  }

  function show() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    const start = page * PAGE;
    status.textContent = found.length === GROUPS.length ? `${plural(GROUPS.length, "group")} of answers` : `${found.length.toLocaleString("en")} of ${plural(GROUPS.length, "group")}`;
    list.replaceChildren(...found.slice(start, start + PAGE).map((group, i) => card(group, () => openGroup(found, start + i))));
    if (!found.length) list.append(h("li", { class: "empty" }, "Nothing matches these filters."));
    const turn = (by) => () => {
      page += by;
      show();
      list.parentElement.scrollIntoView({ block: "start" });
    };
    pager.replaceChildren(
      h("button", { type: "button", disabled: page === 0, onclick: turn(-1) }, "← page before"),
      h("span", {}, `page ${page + 1} of ${pages}`),
      h("button", { type: "button", disabled: page === pages - 1, onclick: turn(1) }, "next page →"));
    pager.hidden = pages === 1;
  }

  const form = h("form", { class: "filters", oninput: filter, onsubmit: (event) => event.preventDefault(), onreset: () => setTimeout(filter) },
    h("div", { class: "fields" }, category, tasks.length > 1 && task, from, to, lowest, highest, words, order),
    h("div", { class: "fields" }, unreadable, equal, h("button", { type: "reset" }, "clear")));
  filter();
  return h("div", { class: "browser" }, form, reasons(), status, list, pager);
}

function card(group, onopen) {
  const label = `${titleOf(group)}, rollout ${group.rollout}, mean reward ${number(group.mean)}, ${plural(group.answers.length, "answer")}`;
  return h("li", { class: "group" }, h("button", { type: "button", class: "card", "aria-label": label, onclick: onopen },
    picture(group, best(group).answer),
    h("span", { class: "card-title hostile" }, titleOf(group)),
    !isBoxes(group.target) && h("span", { class: "quiet hostile two-lines" }, `answer: ${said(best(group).answer)}`),
    h("span", { class: "card-line" }, h("span", {}, `rollout ${group.rollout}`), h("small", {}, "mean reward ", h("b", {}, number(group.mean)))),
    bars(group)),
    h("p", { class: "origin" }, origin(group).slice(0, 1).map((button) => button || copyable(group.image_id, `image ${shorten(group.image_id, 40)}`))));
}

const dialog = document.getElementById("group");

function openGroup(groups, position) {
  const group = groups[position];
  const move = (by) => {
    if (!groups[position + by]) return;
    openGroup(groups, position + by);
    const [before, after] = dialog.querySelectorAll(".steps button");
    (by < 0 ? (before.disabled ? after : before) : after.disabled ? before : after).focus();
  };
  const step = (by, text, label) => h("button", { type: "button", disabled: !groups[position + by], "aria-label": label, onclick: () => move(by) }, text);
  const drawn = group.answers.some((answer) => isBoxes(answer.answer)) || isDrawn(group);
  const shapes = isMaze(group) ? "ways" : "boxes";
  const toggle = (kind, text) => h("label", { class: "check" }, h("input", { type: "checkbox", checked: !dialog.classList.contains(`no-${kind}`), onchange: (event) => dialog.classList.toggle(`no-${kind}`, !event.target.checked) }), h("i", { class: `swatch ${kind}` }), text);
  dialog.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && event.target.tagName !== "INPUT") move(by);
  };
  dialog.replaceChildren(
    h("header", {},
      h("div", {}, h("h2", { id: "group-title", class: "hostile", tabindex: "-1", autofocus: true }, titleOf(group)),
        h("p", { class: "quiet" }, `rollout ${group.rollout}`), h("p", { class: "origin" }, origin(group))),
      h("div", { class: "steps" }, step(-1, "←", "the group before"), step(1, "→", "the next group"),
        h("button", { type: "button", class: "close", "aria-label": "close", onclick: () => dialog.close() }, "✕"))),
    h("div", { class: "overview" },
      picture(group, null, group.answers.map((answer) => answer.answer)),
      h("div", {},
        h("dl", { class: "facts" },
          h("div", {}, h("dt", {}, "true"), h("dd", { class: "hostile" }, said(group.target))),
          h("div", {}, h("dt", {}, "mean reward"), h("dd", {}, number(group.mean))),
          h("div", {}, h("dt", {}, "spread"), h("dd", {}, number(group.spread))),
          h("div", {}, h("dt", {}, "readable"), h("dd", {}, `${group.answers.length - group.unreadable} of ${group.answers.length}`))),
        drawn && h("div", { class: "toggles" }, toggle("truth", `true ${shapes}`), toggle("predicted", `predicted ${shapes}`)),
        h("div", { class: "rewards" }, h("p", { class: "quiet" }, "reward of each answer"), bars(group),
          h("div", { class: "bars-key", "aria-hidden": "true" }, group.answers.map((_, i) => h("span", {}, i + 1)))),
        drawn && h("p", { class: "quiet" }, `The picture here has the ${shapes} of all answers at once.`),
        prompt(group, true),
        group.spread === 0 && h("p", { class: "quiet" }, "All answers earned the same: this group taught nothing."))),
    h("ol", { class: "answers" }, group.answers.map((answer, i) => answerCard(group, answer, i, drawn))));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function answerCard(group, answer, i, drawn) {
  return h("li", { class: answer.valid ? "answer" : "answer unreadable" },
    drawn && picture(group, answer.answer),
    h("div", { class: "answer-head" },
      h("span", { class: "quiet" }, `answer ${i + 1}`),
      h("span", {}, h("b", { class: "reward" }, number(answer.reward)), h("small", {}, " reward"))),
    advantageBar(answer.advantage),
    h("dl", { class: "parts" }, Object.entries(answer.rewards).map(([name, value]) => h("div", {}, h("dt", { class: "hostile" }, name), h("dd", {}, number(value))))),
    answer.valid ? h("p", { class: "said hostile" }, said(answer.answer)) : h("p", { class: "said bad hostile" }, verdict(answer)),
    answer.reasoning && h("p", { class: "reasoning hostile" }, answer.reasoning),
    h("details", { open: !answer.valid }, h("summary", {}, "whole completion"), h("pre", { class: "hostile" }, answer.completion || "(empty)")));
}

function advantageBar(value) {
  const side = value == null ? 0 : Math.max(-1, Math.min(1, value / 2.5)) * 50;
  return h("div", { class: "advantage" },
    svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "track", width: 100, height: 8, rx: 1 }),
      svg("rect", { class: side < 0 ? "minus" : "plus", x: Math.min(50, 50 + side), width: Math.abs(side), height: 8 }),
      svg("rect", { class: "zero", x: 49.6, width: 0.8, height: 8 })),
    h("span", {}, h("b", {}, signed(value, number)), h("small", {}, " advantage")));
}
