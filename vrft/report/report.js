// The page: summary of the run, curves, rollouts, before and after, categories, warnings and config.

const METRICS = {
  "train/zero_variance_groups": ["Groups without variance", "share of groups whose answers all earn the same; they teach nothing", 0, 1],
  "train/truncated": ["Cut off", "share of completions that reach the length limit", 0, 1],
  "train/valid": ["Valid", "share of completions in the format, with an answer that can be read", 0, 1],
  "train/completion_length": ["Completion length", "tokens, mean", 0],
  "train/kl": ["KL", "divergence from the reference, nats per token"],
  "train/entropy": ["Entropy", "of the next token, nats"],
  "train/reward_std": ["Spread of rewards", "standard deviation within a group, mean", 0],
  "train/grad_norm": ["Gradient norm", "before it is clipped", 0],
  "train/clip_fraction": ["Clipped", "share of tokens whose ratio is clipped", 0],
  "train/sampling_gap": ["Sampler and trainer", "mean gap between their log-probabilities"],
  "train/learning_rate": ["Learning rate", null, 0],
  "train/samples_per_second": ["Samples per second", "completions of all ranks", 0],
  "train/extra_rollouts": ["Extra rollouts", "of a step, by dynamic sampling", 0],
};

const title = (name) => METRICS[name]?.[0] ?? name.replace(/^(train|val|time|memory)\//, "").replace(/^(coco|lvis)\/AP$/, "mAP").replace(/^(coco|lvis)\/AP_answer$/, "mAP by stated confidence").replace(/^(coco|lvis)\/AP_logprob$/, "mAP by token probability").replace(/^(coco|lvis)\/ECE$/, "calibration error").replace(/^(coco|lvis)\//, "").replaceAll("_", " ");
const PHASES = ["rollout", "reward", "old", "reference", "update", "optimizer"];
const of = (name) => DATA.series[name];
const sections = [];

// Comparisons of fewer groups or images are left out: they would be chance.
const MIN_GROUPS = 8;

function section(id, name, intro, ...content) {
  sections.push([id, name]);
  return h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, name), intro && h("p", { class: "intro" }, intro), content);
}

// --------------------------------------------------------------------------------------------- summary of the run

function change(before, after, falls = false) {
  if (before == null || after == null) return null;
  const by = after - before;
  const kind = Math.abs(by) < 0.0005 ? "same" : by > 0 ? "up" : "down";
  return h("span", { class: `change ${kind}${falls ? " inverse" : ""}` }, h("span", { "aria-hidden": "true" }, { same: "= ", up: "▲ ", down: "▼ " }[kind]), signed(by));
}

function dumbbell(before, after, falls = false, high = 1) {
  const at = (value) => 4 + 92 * Math.min(1, Math.max(0, value / high));
  const dot = (value, kind) => value != null && svg("circle", { class: kind, cx: `${at(value)}%`, cy: 8, r: 5 });
  return svg("svg", { class: "dumbbell", height: 16, width: "100%", "aria-hidden": "true" },
    svg("line", { class: "rail", x1: "4%", x2: "96%", y1: 8, y2: 8 }),
    before != null && after != null && svg("line", { class: (falls ? after > before : after < before) ? "span down" : "span", x1: `${at(before)}%`, x2: `${at(after)}%`, y1: 8, y2: 8 }),
    dot(before, "before"), dot(after, "after"));
}

const bounds = (found, text = score) => `${text(found[0])} to ${text(found[1])}`;

// A score of the last evaluation, or else of the base, with its interval and that of its change.
function scoreCard({ name, base, tuned, falls, base_interval, tuned_interval, change_interval, best, best_interval }) {
  const range = tuned == null ? base_interval : tuned_interval;
  const unsure = change_interval && change_interval[0] <= 0 && change_interval[1] >= 0;
  return h("li", {}, h("span", { class: "score-name" }, name),
    h("span", { class: "score-line" }, h("b", { class: "score" }, score(tuned ?? base)), range && h("span", { class: "quiet" }, `95 %: ${bounds(range)}`)),
    tuned == null ? h("span", { class: "quiet" }, "base, before training") : h("span", { class: "score-line" }, change(base, tuned, falls), h("span", { class: "quiet" }, base == null ? "" : `from ${score(base)}`)),
    change_interval?.some((bound) => bound !== 0) && h("span", { class: "quiet" }, `change: ${bounds(change_interval, (value) => signed(value))}${unsure ? ", may be chance" : ""}`),
    best != null && h("span", { class: "quiet" }, `best checkpoint, step ${DATA.best_step}: ${score(best)}${best_interval ? `, 95 %: ${bounds(best_interval)}` : ""}`),
    dumbbell(base, tuned, falls, Math.max(1, Math.ceil((tuned ?? 0) * 2) / 2, Math.ceil((base ?? 0) * 2) / 2)));
}

function scores() {
  const images = DATA.held_out.images, tuned = DATA.scores.some((found) => found.tuned != null);
  const known = DATA.scores.some((found) => found.base_interval || found.tuned_interval);
  const about = known
    ? `Ranges are 95 % intervals over images, from 200 bootstrap samples${tuned ? "; base and tuned are compared on the same samples" : ""}.`
    : images > 0 && images < MIN_GROUPS ? `${plural(images, "image")}: too few for intervals, and any difference may be chance.` : null;
  return DATA.scores.length > 0 && [
    h("h2", { class: "small" }, `${images ? plural(images, "held-out image") : "Held-out images"}, greedy answers: ${tuned ? `base and ${DATA.ended ? "tuned" : "so far"}` : "the base"}`),
    h("ul", { class: "scores" }, DATA.scores.map(scoreCard)),
    about && h("p", { class: "quiet below" }, about)];
}

function overview() {
  const facts = { ...DATA.facts };
  const lead = [facts.method, facts.task?.replace(/^tasks\./, ""), facts.policy].filter(Boolean).join(" · ");
  const rest = Object.entries(facts).filter(([name]) => !["method", "task", "policy"].includes(name));
  const warned = DATA.warnings.length;
  return h("header", { class: "top", id: "overview" },
    h("p", { class: "kicker" }, "vrft report"),
    h("h1", { class: "hostile" }, DATA.name),
    lead && h("p", { class: "lead hostile" }, lead),
    h("dl", { class: "facts" },
      [["state", DATA.state.state], [UNITS, DATA.rollouts.toLocaleString("en")], ["training time", duration(DATA.seconds)], ...rest, ["written", DATA.written]]
        .filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { class: "hostile" }, value)))),
    DATA.state.notice && h("p", { class: "notice hostile" }, DATA.state.notice,
      DATA.state.resume && [" To continue after it has ended: ", copyable(DATA.state.resume)]),
    warned > 0 && h("p", { class: "notice" }, h("a", { href: "#warnings" }, plural(warned, "warning")), " came up in this run."),
    scores());
}

// ------------------------------------------------------------------------------------------------------ curves

function curves() {
  const names = Object.keys(DATA.series);
  if (!names.length) return null;
  const used = new Set();
  const take = (name, more) => of(name) && (used.add(name), { label: title(name), points: of(name), ...more });
  const pick = (...found) => found.filter(Boolean);

  const reward = pick(take("train/reward", { label: "in training, sampled" }), take("val/reward", { label: "held out, greedy", dots: true, colour: 1 }));
  const scored = names.filter((name) => /^val\/((coco|lvis)\/AP(50|_answer|_logprob)?|gIoU|mIoU|Acc@0\.5|accuracy|class_accuracy|presence\/\w+)$/.test(name));
  const held = scored.map((name, i) => take(name, { dots: true, colour: i % 6 }));
  if (of("val/valid")) held.push(take("val/valid", { dots: true, colour: 5 }));
  const loss = pick(take("train/loss", { label: "loss" }), take("train/sft_loss", { label: "loss" }));
  const parts = names.filter((name) => name.startsWith("train/reward/") || (name.startsWith("val/reward/") && !of(name.replace("val", "train"))))
    .map((name) => name.replace(/^(train|val)\//, ""));
  const part = (name) => chart({ title: name.replace("reward/", ""), series: pick(take(`train/${name}`, { label: "training" }), take(`val/${name}`, { label: "held out", dots: true, colour: 1 })) });
  const partCharts = parts.map(part);
  const place = (name) => PHASES.indexOf(name.slice(5)) >>> 0; // unknown ones come last
  const phases = names.filter((name) => name.startsWith("time/") && of(name).length > 1).sort((a, b) => place(a) - place(b));
  const time = phases.map((name, i) => take(name, { colour: i % 6 }));
  const memory = names.filter((name) => name.startsWith("memory/")).map((name, i) => take(name, { colour: i % 6 }));
  names.filter((name) => name.startsWith("guards/")).forEach((name) => used.add(name)); // shown among the warnings
  const quiet = names.filter((name) => !used.has(name) && name.startsWith("train/") && of(name).every(([, value]) => value === 0));
  quiet.forEach((name) => used.add(name));
  const health = Object.entries(METRICS).filter(([name]) => of(name) && !quiet.includes(name)).map(([name, [text, hint, low, high]]) => (used.add(name), chart({ title: text, hint, low, high, series: [{ label: text, points: of(name) }] })));
  const others = names.filter((name) => !used.has(name) && of(name).length).map((name) => chart({ title: name, series: [{ label: name, points: of(name), dots: name.startsWith("val/") }] }));

  return section("curves", "Curves", `Over ${UNITS}. Thin lines are single ${UNITS}, thick ones their running mean; dots are evaluations. Point at a chart, or use the arrow keys in it, to read all of them at one ${UNIT}.`,
    h("div", { class: "wide-charts" },
      reward.length > 0 && chart({ title: "Reward", hint: of("train/reward") ? "what is maximised" : "of held-out answers; not what is trained on", series: reward, height: 230 }),
      loss.length > 0 && chart({ title: "Loss", hint: "cross-entropy of the target texts, per token", series: loss, height: 230 }),
      held.length > 0 && chart({ title: "Held-out scores", hint: "the goal of training; if a reward rises and these do not, the policy exploits the reward", series: held, height: 230, low: 0 })),
    partCharts.length > 0 && [h("h3", {}, "Parts of the reward"), h("div", { class: "charts few" }, partCharts)],
    health.length > 0 && [h("h3", {}, "Health"), h("div", { class: "charts" }, health)],
    quiet.length > 0 && h("p", { class: "quiet" }, `Zero in all steps: ${quiet.map((name) => title(name).toLowerCase()).join(", ")}.`),
    time.length + memory.length > 0 && [h("h3", {}, "Time and memory"), h("div", { class: "wide-charts" },
      time.length > 0 && chart({ title: "Seconds per phase", hint: "of one step, stacked", series: time, height: 190, stacked: true }),
      memory.length > 0 && chart({ title: "Memory", hint: "10⁹ bytes", series: memory, height: 190, low: 0 }))],
    others.length > 0 && h("details", { class: "more" }, h("summary", {}, `${plural(others.length, "more number")}`), h("div", { class: "charts" }, others)));
}

// ------------------------------------------------------------------------------------ rollouts, before and after

function browser() {
  if (!GROUPS.length) return null;
  const left_out = DATA.all_groups - GROUPS.length;
  return section("rollouts", "Rollouts", `Each picture is one question with the answer that earned most; the bars are the rewards of all its answers, pale where one can't be read.${left_out ? ` ${plural(left_out, "group")} of rollouts in between are left out to keep this file small.` : ""}`,
    GROUPS.some(isDrawn) && key(), rolloutBrowser(),
    DATA.pairs.length > 0 && DATA.pairs.length < MIN_GROUPS && h("p", { class: "quiet" }, `${plural(DATA.pairs.length, "training question")} came up both early and late in what is shown here. A comparison of fewer than ${MIN_GROUPS} says nothing about the run, so there is none; order by “first rollouts” and “last rollouts” to see the answers themselves.`));
}

function firstAndLast() {
  const found = DATA.pairs.map((places) => places.map((place) => GROUPS[place]));
  if (found.length < MIN_GROUPS) return null;
  const side = (group) => ({ group, title: `rollout ${group.rollout}`, score: group.mean, ...best(group), answer: best(group).answer });
  const gains = found.map(([before, after]) => (after.mean ?? 0) - (before.mean ?? 0));
  return section("first-last", "First against last", `The same training questions early and late in the run, with the mean reward of the group and its best answer. On these ${found.length}, it changed by ${signed(mean(gains))} on average.`,
    h("ul", { class: "pairs" }, found.map((groups) => pair(groups[0], groups.map(side), (clicked) => openGroup(groups, groups.indexOf(clicked.group))))));
}

const WHY = {
  improved: ["most improved", "No image gained since the base."],
  worsened: ["most worsened", "No image lost since the base."],
  worst: ["worst now", "No image has a score."],
  sample: ["a fixed sample", "There are none."],
};

function heldOut() {
  const { answers, lists } = DATA.held_out;
  if (!answers.length) return null;
  const holder = h("ul", { class: "pairs" });
  const { element, choose } = switcher("Which images", Object.entries(WHY).filter(([why]) => lists[why]).map(([why, [text]]) => [why, text]), (why) => {
    const sides = (entry) => [["base", entry.first], [entry.first ? "tuned" : "base", entry.last]].filter(([, answer]) => answer).map(([name, answer]) => ({ title: name, ...answer }));
    holder.replaceChildren(...lists[why].map((place) => pair(answers[place], sides(answers[place]))));
    if (!lists[why].length) holder.append(h("li", { class: "empty" }, WHY[why][1]));
  });
  choose(lists.improved.length ? "improved" : "worst");
  return section("held-out", "Held-out images", "Greedy answers to the same question before and after, with the score of that one answer: the matched IoU, or 1 for right and 0 for wrong. “Worst” and “improved” are one question per image.",
    answers.some(isDrawn) && key(), element, holder);
}

// -------------------------------------------------------------------------------------------------- categories

const ROWS = 30;

function categories() {
  if (!DATA.categories) return null;
  const { score: kind, rows } = DATA.categories;
  const isFew = (row) => row.images != null && row.images < MIN_GROUPS;
  const by = (row) => (row.base == null || isFew(row) ? 0 : row.tuned - row.base);
  const counted = rows.some((row) => row.images != null);
  const orders = { change: (a, b) => by(b) - by(a), tuned: (a, b) => b.tuned - a.tuned, name: (a, b) => (a.name < b.name ? -1 : 1) };
  const body = h("tbody");
  const more = h("button", { type: "button", onclick: () => ((all = true), show()) });
  let order = "change";
  let all = false;
  function show() {
    const sorted = [...rows].sort(orders[order]);
    body.replaceChildren(...(all ? sorted : sorted.slice(0, ROWS)).map((row) => h("tr", {},
      h("th", { scope: "row", class: "hostile" }, row.name), h("td", { class: "track-cell" }, dumbbell(row.base, row.tuned)),
      counted && h("td", {}, row.images ?? "–"), h("td", {}, score(row.base)), h("td", {}, score(row.tuned)),
      h("td", {}, isFew(row) ? h("span", { class: "quiet" }, "few images") : change(row.base, row.tuned) ?? "–"))));
    more.hidden = all || rows.length <= ROWS;
    more.textContent = `show all ${rows.length}`;
  }
  const { element, choose } = switcher("Order", [["change", "by change"], ["tuned", "by score"], ["name", "by name"]], (value) => ((order = value), show()));
  choose(rows.some((row) => row.base != null) ? "change" : "tuned");
  return section("categories", kind === "AP" ? "AP per category" : "Accuracy per class", `On held-out images: the open dot is the base, the full one the last evaluation.${rows.some(isFew) ? ` Changes on fewer than ${MIN_GROUPS} images are left out.` : ""}`, element,
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["category", "", ...(counted ? ["images"] : []), "base", "tuned", "change"].map((text) => h("th", { scope: "col" }, text)))), body)), more);
}

// -------------------------------------------------------------------------------------------------- calibration

// Share of correct boxes over stated confidence. On the diagonal, confidences are what they claim to be.
function reliability({ evaluation, bins }) {
  const side = 260, left = 40, top = 10, size = 200;
  const sx = (x) => left + size * x, sy = (y) => top + size * (1 - y);
  const boxes = bins.reduce((sum, bin) => sum + bin.boxes, 0);
  const error = bins.reduce((sum, bin) => sum + (bin.boxes / boxes) * Math.abs(bin.accuracy - bin.confidence), 0);
  const says = `${evaluation}: calibration error ${score(error)} on ${plural(boxes, "box")}`;
  const axis = [0, 0.5, 1].flatMap((at) => [
    svg("line", { class: "grid", x1: sx(0), x2: sx(1), y1: sy(at), y2: sy(at) }),
    svg("text", { class: "tick", x: left - 8, y: sy(at) + 4, "text-anchor": "end" }, String(at)),
    svg("text", { class: "tick", x: sx(at), y: top + size + 16, "text-anchor": "middle" }, String(at))]);
  return h("figure", { class: "chart" },
    h("figcaption", {}, h("div", { class: "chart-title" }, h("strong", {}, says)), h("p", {}, "share of correct boxes over stated confidence; larger dots are more boxes")),
    svg("svg", { role: "img", "aria-label": says, viewBox: `0 0 ${side} ${top + size + 22}`, class: "reliability" },
      axis, svg("line", { class: "hair", x1: sx(0), y1: sy(0), x2: sx(1), y2: sy(1) }),
      bins.map((bin) => [
        svg("line", { class: "gap", x1: sx(bin.confidence), x2: sx(bin.confidence), y1: sy(bin.confidence), y2: sy(bin.accuracy) }),
        svg("circle", { class: "point c0", cx: sx(bin.confidence), cy: sy(bin.accuracy), r: 3 + 9 * Math.sqrt(bin.boxes / boxes) },
          svg("title", {}, `${bin.boxes} stated ${score(bin.confidence)} on average; ${score(bin.accuracy)} of them are correct`))])));
}

function calibration() {
  const found = DATA.calibration.filter(({ bins }) => bins.length);
  return found.length > 0 && section("calibration", "Calibration", "Boxes of held-out answers in ten bins by the confidence that they state. A box is correct if it matches a true box of its label at an IoU of 0.5. The error is the mean distance to the diagonal, weighted by boxes.",
    h("div", { class: "charts few" }, found.map(reliability)));
}

// ----------------------------------------------------------------------------------------------- sampled answers

// A curve over the number of sampled answers or of thinking tokens, at equal distances, with its intervals as an area.
function overAnswers({ name, meaning, unit, points }) {
  const left = 40, top = 10, width = 260, height = 140;
  const sx = (i) => left + (points.length > 1 ? (width * i) / (points.length - 1) : width / 2), sy = (y) => top + height * (1 - y);
  const line = (values) => values.map(([i, y], at) => `${at ? "L" : "M"}${sx(i).toFixed(1)} ${sy(y).toFixed(1)}`).join("");
  const upper = points.map((point, i) => [i, point[3]]), lower = points.map((point, i) => [i, point[2]]).reverse();
  const last = points[points.length - 1];
  const says = `${name}: ${score(points[0][1])} with ${plural(points[0][0], unit)}, ${score(last[1])} with ${last[0]}`;
  return h("figure", { class: "chart" },
    h("figcaption", {}, h("div", { class: "chart-title" }, h("strong", {}, says)), h("p", {}, meaning)),
    svg("svg", { role: "img", "aria-label": says, viewBox: `0 0 ${left + width + 20} ${top + height + 22}` },
      [0, 0.5, 1].flatMap((y) => [
        svg("line", { class: "grid", x1: left, x2: left + width, y1: sy(y), y2: sy(y) }),
        svg("text", { class: "tick", x: left - 8, y: sy(y) + 4, "text-anchor": "end" }, String(y))]),
      svg("path", { class: "area c0", d: `${line(upper)}${line(lower).replace("M", "L")}Z` }),
      svg("path", { class: "line c0", d: line(points.map((point, i) => [i, point[1]])) }),
      points.map((point, i) => [
        svg("text", { class: "tick", x: sx(i), y: top + height + 16, "text-anchor": "middle" }, String(point[0])),
        svg("circle", { class: "point c0", cx: sx(i), cy: sy(point[1]), r: 3 }, svg("title", {}, `${plural(point[0], unit)}: ${score(point[1])} [${score(point[2])}, ${score(point[3])}]`))])));
}

function scaling() {
  return DATA.scaling.length > 0 && section("scaling", "Sampled answers", "What several answers to one question are worth, by their number, from one set of samples, and answers after limited thinking. Areas are 95 % intervals over images.",
    DATA.scaling.flatMap(({ evaluation, questions, curves: some }) => [h("h3", { class: "hostile" }, `${evaluation}, ${plural(questions, "question")}`), h("div", { class: "charts few" }, some.map(overAnswers))]));
}

// ------------------------------------------------------------------------------------------ warnings and config

function warnings() {
  if (!DATA.warnings.length && !DATA.problems.length) return section("warnings", "Warnings", "None.");
  return section("warnings", "Warnings", null,
    DATA.warnings.length > 0 && h("ul", { class: "warnings" }, DATA.warnings.map(({ kind, rollout, text }) =>
      h("li", {}, h("span", { class: "tag hostile" }, kind.replaceAll("_", " ")), rollout != null && h("span", { class: "quiet" }, `rollout ${rollout}`), h("span", { class: "hostile" }, text)))),
    DATA.problems.length > 0 && [h("h3", {}, "What this report could not read"), h("ul", { class: "warnings" }, DATA.problems.map((text) => h("li", { class: "hostile" }, text)))]);
}

function config() {
  if (!DATA.config) return null;
  return section("config", "Config", "Every field with its value; python -m vrft fit --config config.yaml runs the same again.",
    h("details", {}, h("summary", {}, "config.yaml"), h("pre", { class: "hostile config", tabindex: "0" }, DATA.config)));
}

document.title = `${DATA.name} · vrft report`;
document.getElementById("main").append(...[overview(), curves(), browser(), firstAndLast(), heldOut(), categories(), calibration(), scaling(), warnings(), config()].filter(Boolean));
document.getElementById("nav").append(h("a", { href: "#overview", class: "home hostile" }, DATA.name), h("div", {}, sections.map(([id, name]) => h("a", { href: `#${id}` }, name))));
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
document.documentElement.dataset.ready = "true";
