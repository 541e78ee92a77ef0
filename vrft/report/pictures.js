// An image with its true and its predicted boxes, or the ways through a maze.

const isBoxes = (value) => Array.isArray(value);

function sizeOf({ size, target, answers = [] }) {
  if (size && size[0] > 0 && size[1] > 0 && size[0] < 1e6 && size[1] < 1e6) return size;
  const corners = [target, ...answers].filter(isBoxes).flat().map((found) => found[0]);
  const extent = (i) => Math.min(1e6, Math.max(1, ...corners.map((box) => box[i])));
  return [extent(2), extent(3)];
}

const MAZE = /^((?:\d+-\d+:U?R?D?L? )+)from ((\d+)-(\d+) to \d+-\d+)$/;
const STEPS = { up: [-1, 0], right: [0, 1], down: [1, 0], left: [0, -1] };

// The cells on a way through a maze, up to the first wall; null if the query is no maze or the moves are no text.
function wayOf(query, moves) {
  const form = MAZE.exec(query ?? "");
  if (!form || typeof moves !== "string") return null;
  const sides = form[1].trim().split(" ").map((cell) => cell.split(":")[1]);
  const cells = Math.round(Math.sqrt(sides.length));
  const way = [[Number(form[3]), Number(form[4])]];
  for (const move of moves.split(" ")) {
    const [row, column] = way[way.length - 1];
    if (!STEPS[move] || !sides[row * cells + column]?.includes(move[0].toUpperCase())) break;
    way.push([row + STEPS[move][0], column + STEPS[move][1]]);
  }
  return { cells, way };
}

function path(query, moves, kind, [width, height]) {
  const found = wayOf(query, moves);
  if (!found) return null;
  const points = found.way.map(([row, column]) => [((column + 0.5) / found.cells) * width, ((row + 0.5) / found.cells) * height].join(",")).join(" ");
  return svg("g", { class: kind }, svg("title", {}, `${kind}: ${moves}`), svg("polyline", { class: "halo", points }), svg("polyline", { points }));
}

const isMaze = (subject) => wayOf(subject.query, subject.target) != null;
const isDrawn = (subject) => isBoxes(subject.target) || isMaze(subject);

// The query, or the true answer if samples have no query.
const titleOf = (subject) => (isMaze(subject) ? `maze from ${MAZE.exec(subject.query)[2]}` : subject.query || said(subject.target));

const clamp = (value, high) => Math.min(Math.max(value, -high), 2 * high);

function boxes(detections, kind, [width, height]) {
  const scale = Math.max(width, height);
  return detections.map(([[x0, y0, x1, y1], label, confidence]) => {
    const [left, top, right, bottom] = [clamp(x0, width), clamp(y0, height), clamp(x1, width), clamp(y1, height)];
    const at = { x: Math.min(left, right), y: Math.min(top, bottom), width: Math.abs(right - left), height: Math.abs(bottom - top) };
    const text = kind === "predicted" && confidence != null ? `${label} ${number(confidence)}` : label;
    return svg("g", { class: kind }, svg("title", {}, `${kind}: ${text}`), svg("rect", { class: "halo", ...at }), svg("rect", at),
      kind === "predicted" && confidence != null && svg("text", { x: Math.min(Math.max(at.x + scale * 0.012, 0), width * 0.86), y: Math.min(Math.max(at.y + scale * 0.058, scale * 0.058), height), "font-size": scale * 0.055, "stroke-width": scale * 0.012 }, number(confidence)));
  });
}

// subject: {image, images, place, size, target, query}; predicted: detections, a text or null. Boxes are on images[place].
function picture(subject, predicted, answers = []) {
  const drawn = boxed(subject, predicted, answers);
  if (subject.images.length < 2) return drawn;
  const { image, images } = subject;
  const place = images[subject.place] === image ? subject.place : images.lastIndexOf(image); // equal images have one name
  return h("div", { class: "images" }, images.map((name, i) =>
    i === place ? drawn : h("div", { class: "picture" }, PICTURES[name]
      ? h("img", { src: `data:image/jpeg;base64,${PICTURES[name]}`, alt: `image ${i + 1} of ${images.length}`, decoding: "async" })
      : h("span", {}, "no picture kept"))));
}

function boxed(subject, predicted, answers) {
  const size = sizeOf({ ...subject, answers: [predicted, ...answers] });
  const frame = h("div", { class: "picture" });
  frame.style.aspectRatio = `${size[0]} / ${Math.min(size[1], size[0] * 1.6)}`;
  const content = PICTURES[subject.image];
  const alt = `image ${subject.image_id}, ${titleOf(subject)}`;
  if (content) {
    frame.append(h("img", { src: `data:image/jpeg;base64,${content}`, alt, decoding: "async", class: Math.max(...size) <= 160 ? "pixels" : null }));
  } else {
    frame.classList.add("absent");
    frame.append(h("span", {}, "no picture kept"));
  }
  frame.append(svg("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, "aria-hidden": "true" },
    isBoxes(subject.target) && boxes(subject.target, "truth", size),
    isBoxes(predicted) && boxes(predicted, "predicted", size),
    path(subject.query, subject.target, "truth", size),
    [predicted, ...answers].map((answer) => path(subject.query, answer, "predicted", size)),
    answers.filter(isBoxes).map((answer) => boxes(answer.map(([box, label]) => [box, label, null]), "predicted", size))));
  return frame;
}

const said = (value) =>
  value == null ? "can't be read" : isBoxes(value) ? (value.length ? plural(value.length, "box") : "no objects") : value || "(empty)";

// What an answer says, or why it can't be read.
const verdict = (answer) =>
  answer.answer == null ? `can't be read${answer.problem ? `: ${answer.problem}` : ""}` : `not in the format that was asked for${answer.problem ? `: ${answer.problem}` : ""}`;

const key = () => h("ul", { class: "legend key" },
  h("li", {}, h("i", { class: "swatch truth" }), "true"), h("li", {}, h("i", { class: "swatch predicted" }), "predicted"));

// One image with answers before and after training.
function pair(subject, sides, onopen) {
  return h("li", { class: "pair" },
    h("h3", { class: "hostile" }, titleOf(subject)),
    h("p", { class: "origin" }, origin(subject)),
    subject.query && typeof subject.target === "string" && h("p", { class: "quiet" }, "true: ", h("b", { class: "hostile" }, subject.target)),
    h("div", { class: "sides" }, sides.map((side) =>
      h(onopen ? "button" : "div", onopen ? { type: "button", onclick: () => onopen(side), class: "side" } : { class: "side" },
        picture(subject, side.answer),
        h("span", { class: "side-title" }, h("span", {}, side.title), h("b", {}, score(side.score))),
        h("span", { class: `quiet hostile ${side.valid ? "two-lines" : "six-lines bad"}`, title: side.problem }, !side.valid ? verdict(side) : isBoxes(side.answer) && side.reasoning ? side.reasoning : said(side.answer))))),
    prompt(subject));
}
