// Line charts over rollouts, or batches. Hovering over one shows the values of all charts at that point.

// What the horizontal axis counts. Supervised fine-tuning samples nothing.
const UNIT = DATA.facts.method === "SFT" ? "batch" : "rollout";
const UNITS = UNIT === "batch" ? "batches" : "rollouts";
const LAST = Math.max(1, DATA.rollouts);

const cursor = {
  listeners: [],
  set(x) {
    for (const listener of this.listeners) listener(x);
  },
};

function ticks(low, high, about) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const found = [];
  const first = Math.ceil(low / step - 1e-9);
  for (let i = 0; i < 20 && (first + i) * step <= high + step * 1e-9; i++) found.push((first + i) * step);
  return found;
}

function tickLabel(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e").replaceAll("-", "−");
  if (size >= 10000) return `${+(value / 1000).toPrecision(3)}k`;
  return String(+value.toPrecision(4)).replace("-", "−");
}

// The mean over equally many neighbours on both sides.
function smooth(points, width) {
  const sums = [0];
  for (const [, y] of points) sums.push(sums[sums.length - 1] + y);
  return points.map(([x], i) => {
    const reach = Math.min(i, points.length - 1 - i, width);
    return [x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)];
  });
}

function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
}

const reachOf = (points) => Math.max(1, Math.round(points.length / 30));

// series: {label, points, dots, colour}; with dots, each value is marked and the curve is not smoothed.
function chart({ title, hint, series, height = 150, low, high, stacked = false }) {
  const shown = series.map((each, i) => ({
    colour: i,
    ...each,
    line: each.dots || each.points.length < 12 ? each.points : smooth(each.points, reachOf(each.points)),
  }));
  if (stacked) stack(shown);
  const values = shown.map(() => h("span", { class: "value" }));
  const when = h("span", { class: "when" });
  const legend = h("ul", { class: "legend" },
    shown.map((each, i) => h("li", {}, shown.length > 1 && h("i", { class: `swatch c${each.colour}${each.dots ? " dot" : ""}` }), shown.length > 1 && `${each.label} `, values[i])));
  const drawing = svg("svg", { role: "img", tabindex: "0", "aria-label": `${title}: ${shown.map(summary).join("; ")}. Arrow keys move along the run.` });
  const holder = h("div", { class: "holder" }, drawing);
  let place = null;

  function show(x) {
    shown.forEach((each, i) => {
      const point = x == null ? each.points[each.points.length - 1] : nearest(each.points, x);
      values[i].textContent = number(point[1]);
    });
    when.textContent = x == null ? "" : `${UNIT} ${Math.round(x)}`;
    if (place) place(x);
  }

  const draw = (width) => {
    const top = Math.max(...shown.flatMap((each) => (stacked ? each.upper : each.points).map((point) => point[1])), high ?? -Infinity);
    const bottom = Math.min(...shown.flatMap((each) => each.points.map((point) => point[1])), low ?? Infinity, stacked ? 0 : Infinity);
    const room = top - bottom > Math.abs(top) * 1e-6 ? top - bottom : Math.abs(top) * 0.2 || 1;
    const y0 = low ?? (bottom >= 0 && bottom < room ? 0 : bottom - room * 0.06); // start at 0 unless changes would be invisible
    const y1 = top > y0 ? top + (high === top ? 0 : (top - y0) * 0.04) : y0 + room;
    const levels = ticks(y0, y1, height > 170 ? 4 : 3);
    const left = 14 + 6.5 * Math.max(3, ...levels.map((y) => tickLabel(y).length)), right = 10, head = 8, foot = 20;
    const sx = (x) => left + ((width - left - right) * x) / LAST;
    const sy = (y) => head + (height - head - foot) * (1 - (y - y0) / (y1 - y0));
    const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${sx(x).toFixed(1)} ${sy(y).toFixed(1)}`).join("");
    const hair = svg("line", { class: "hair", y1: head, y2: height - foot, visibility: "hidden" });
    const marks = shown.map((each) => svg("circle", { class: `mark c${each.colour}`, r: 3.5, visibility: "hidden" }));
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.setAttribute("height", height);
    drawing.replaceChildren(
      ...levels.flatMap((y) => [
        svg("line", { class: "grid", x1: left, x2: width - right, y1: sy(y), y2: sy(y) }),
        svg("text", { class: "tick", x: left - 8, y: sy(y) + 4, "text-anchor": "end" }, tickLabel(y))]),
      ...ticks(0, LAST, Math.max(2, width / 120)).map((x) =>
        svg("text", { class: "tick", x: sx(x), y: height - 4, "text-anchor": x < LAST * 0.97 ? "middle" : "end" }, tickLabel(x))),
      ...shown.flatMap((each) => stacked
        ? [svg("path", { class: `area c${each.colour}`, d: `${path(each.upper)}${path([...each.lower].reverse()).replace("M", "L")}Z` })]
        : [
            each.line !== each.points && svg("path", { class: `raw c${each.colour}`, d: path(each.points) }),
            svg("path", { class: `line c${each.colour}`, d: path(each.line) }),
            ...(each.dots || each.points.length < 2 ? each.points.map(([x, y]) => svg("circle", { class: `point c${each.colour}`, cx: sx(x), cy: sy(y), r: 3 })) : []),
          ]).filter(Boolean),
      hair, ...(stacked ? [] : marks));
    place = (x) => {
      const visibility = x == null ? "hidden" : "visible";
      hair.setAttribute("visibility", visibility);
      if (x != null) hair.setAttribute("x1", sx(x)), hair.setAttribute("x2", sx(x));
      shown.forEach((each, i) => {
        marks[i].setAttribute("visibility", visibility);
        if (x == null) return;
        const point = nearest(each.points, x);
        marks[i].setAttribute("cx", sx(point[0]));
        marks[i].setAttribute("cy", sy(point[1]));
      });
    };
    drawing.onpointermove = (event) => {
      const box = drawing.getBoundingClientRect();
      const x = ((event.clientX - box.left) * (width / box.width) - left) / (width - left - right);
      cursor.set(Math.round(Math.min(1, Math.max(0, x)) * LAST));
    };
  };

  let at = LAST;
  drawing.addEventListener("pointerleave", () => cursor.set(null));
  drawing.addEventListener("blur", () => cursor.set(null));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    at = Math.min(LAST, Math.max(0, at + step * Math.max(1, Math.round(LAST / 100))));
    cursor.set(at);
  });
  new ResizeObserver(([entry]) => draw(Math.max(160, Math.round(entry.contentRect.width)))).observe(holder);
  cursor.listeners.push(show);
  show(null);
  return h("figure", { class: "chart" },
    h("figcaption", {}, h("div", { class: "chart-title" }, h("strong", {}, title), when, shown.length === 1 && legend), hint && h("p", {}, hint)),
    shown.length > 1 && legend, holder);
}

function summary(each) {
  const first = each.points[0], last = each.points[each.points.length - 1];
  return `${each.label} from ${number(first[1])} to ${number(last[1])}`;
}

// Stacked areas. A series without a value at a rollout counts as 0 there.
function stack(shown) {
  const xs = [...new Set(shown.flatMap((each) => each.line.map((point) => point[0])))].sort((a, b) => a - b);
  const level = new Map(xs.map((x) => [x, 0]));
  for (const each of shown) {
    const known = new Map(each.line);
    each.lower = xs.map((x) => [x, level.get(x)]);
    for (const x of xs) level.set(x, level.get(x) + (known.get(x) ?? 0));
    each.upper = xs.map((x) => [x, level.get(x)]);
  }
}
