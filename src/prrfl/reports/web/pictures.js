"use strict";
// The pictures of a page, drawn with Observable Plot. Each function takes data and the width that it may fill, in
// pixels, and returns elements; `dense` asks for small ones, for paper. Colours are CSS variables, so that pictures follow dark mode and paper.
const pictures = (() => {
  const SYMBOLS = ["circle", "triangle", "square", "diamond", "star", "wye", "cross"];
  const DASHES = ["", "7 3", "2 2", "8 3 2 3", "12 3", "4 4", "1 3"];
  const GAP = 16;
  const colour = k => `var(--s${k % 7})`;
  const at = (list, k) => list[k % list.length];
  const soft = { stroke: "var(--soft)", strokeOpacity: 0.6 };

  /** Return an element of some class, with children. */
  const element = (tag, name, ...children) => {
    const made = document.createElement(tag);
    made.className = name;
    made.append(...children);
    return made;
  };

  /** Return a drawn plot as an image with a name; what is inside is in the table of numbers. */
  const image = (options, label) => {
    const svg = Plot.plot({ style: { fontSize: "12px", background: "none", color: "currentColor" }, ...options });
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
    svg.querySelectorAll("[aria-label]").forEach(part => part.removeAttribute("aria-label"));
    return svg;
  };

  /** Return a small plot below its title. */
  const part = (title, width, svg) => {
    const box = element("div", "part", ...(title ? [element("p", "part-title", title)] : []), svg);
    if (title) box.firstChild.title = title;
    box.style.width = `${width}px`;
    return box;
  };

  /** Return how many parts of at least some width fit side by side, and the width of each. */
  const columns = (width, parts, least) => {
    const count = Math.max(1, Math.min(parts, Math.floor((width + GAP) / (least + GAP))));
    return [count, Math.floor((width - GAP * (count - 1)) / count)];
  };

  /** Return the legend of series: symbols of points, or strokes of lines. */
  const key = (names, kind) => element("ul", "key", ...names.map((name, k) => {
    const sign = d3.create("svg").attr("width", kind === "line" ? 30 : 14).attr("height", 14).attr("aria-hidden", "true");
    if (kind === "line") {
      sign.append("path").attr("d", "M1 7H29").attr("stroke", colour(k)).attr("stroke-width", 2.2)
        .attr("stroke-dasharray", at(DASHES, k));
    } else {
      const shape = d3[`symbol${SYMBOLS[k % 7][0].toUpperCase()}${SYMBOLS[k % 7].slice(1)}`];
      sign.append("path").attr("d", d3.symbol(shape, 60)()).attr("transform", "translate(7 7)").attr("fill", colour(k));
    }
    return element("li", "", sign.node(), name);
  }));

  const measure = (() => {
    const context = document.createElement("canvas").getContext("2d");
    return text => { context.font = "12px sans-serif"; return context.measureText(text).width; };
  })();

  const number = value => value === null ? "" : value.toFixed(1);

  /** Scores with intervals: thick over images, thin over images and training runs. Names stand above in narrow pictures. */
  function intervals(data, width, dense) {
    const many = data.series.length > 1;
    const [, each] = columns(width, data.panels.length, 320);
    const parts = data.panels.map(panel => {
      const rows = d3.group(panel.items, item => item.row);
      const longest = (many ? 1.1 : 1) * d3.max([...rows.keys()], measure) + 14;
      const above = !(dense && !many) && longest > 0.34 * each;
      const left = above ? 4 : Math.max(30, Math.min(longest, 0.4 * each));
      const names = [], placed = [];
      let y = 0;
      for (const [row, items] of rows) {
        names.push({ row, y: above ? y++ : y + (items.length - 1) / 2 });
        for (const item of items) placed.push({ ...item, k: data.series.indexOf(item.series), y: y++ });
        y += many ? 0.5 : above ? 0.35 : 0;
      }
      const ends = placed.flatMap(d => [d.value, ...(d.images ?? []), ...(d.both ?? [])]).filter(v => v !== null);
      if (data.zero) ends.push(0);
      // At least 20 points wide: small differences must not look large.
      const [low, high] = ends.length ? d3.extent(ends) : [0, 100], room = Math.max(0.06 * (high - low), 10 - (high - low) / 2);
      const domain = data.zero ? [low - room, high + room] : [Math.max(0, low - room), Math.min(100, high + room)];
      const found = placed.filter(d => d.value !== null);
      const of = d => colour(d.k);
      const right = found.some(d => d.note) ? 70 : 44;
      const svg = image({
        width: each, height: y * (dense ? 15 : many ? 17 : 23) + 58, marginLeft: left, marginRight: right, marginTop: 6, marginBottom: 42,
        x: { domain, label: panel.label, labelAnchor: "center", labelArrow: "none", ticks: Math.max(3, (each - left) / 70), nice: false },
        y: { domain: [y - 0.3, -0.8], axis: null },
        symbol: { type: "identity" },
        marks: [
          Plot.gridX({ strokeOpacity: 0.12, ticks: Math.max(3, (each - left) / 70) }),
          data.zero ? Plot.ruleX([0], soft) : null,
          many && !above ? Plot.ruleY(names.slice(1), { y: d => rowTop(d, placed) - 0.75, stroke: "var(--line)", insetLeft: -left }) : null,
          Plot.ruleY(placed.filter(d => d.both), { y: "y", x1: d => d.both[0], x2: d => d.both[1], stroke: of, strokeWidth: 1.4 }),
          Plot.ruleX(placed.filter(d => d.both).flatMap(d => d.both.map(x => ({ ...d, x }))), { x: "x", y1: d => d.y - 0.2, y2: d => d.y + 0.2, stroke: of, strokeWidth: 1.4 }),
          Plot.ruleY(placed.filter(d => d.images), { y: "y", x1: d => d.images[0], x2: d => d.images[1], stroke: of, strokeWidth: 6, strokeOpacity: 0.38, strokeLinecap: "round" }),
          Plot.dot(found, { x: "value", y: "y", symbol: d => at(SYMBOLS, d.k), fill: of, r: 4.6 }),
          Plot.text(names, { y: "y", text: "row", frameAnchor: "left", textAnchor: "start", dx: above ? 0 : 2 - left, dy: above && !many ? 5 : 0, fill: "currentColor",
            lineWidth: above ? (each - 12) / (many ? 13.5 : 12) : longest > left ? left / 13 : Infinity, textOverflow: "ellipsis", fontWeight: many ? 600 : 400 }),
          Plot.text(found, { y: "y", text: d => `${number(d.value)} ${d.note}`, frameAnchor: "right", textAnchor: "start", dx: 8, fill: "currentColor" }),
          Plot.tip(found, Plot.pointer({ x: "value", y: "y", title: tipOf })),
        ],
      }, `${panel.label}: ${[...rows.keys()].join(", ")}`);
      return part("", each, svg);
    });
    return [...(many ? [key(data.series, "symbol")] : []), ...parts];
  }

  const rowTop = (name, placed) => d3.min(placed.filter(d => d.row === name.row), d => d.y);

  const span = ends => `${number(ends[0])} – ${number(ends[1])}`;

  const tipOf = d => [
    [d.row, d.series].filter(Boolean).join(", "),
    number(d.value),
    d.images ? `95 % of images: ${span(d.images)}` : "",
    d.both ? `95 %: ${span(d.both)}` : "",
  ].filter(Boolean).join("\n");

  /** Curves with ranges, a panel beside the other; those drawn for comparison are grey. */
  function curves(data, width, dense) {
    const alone = data.panels.length === 1;
    const [count, each] = columns(width, data.panels.length, alone ? 0 : dense ? 118 : width < 500 ? 150 : 230);
    const values = data.panels.flatMap(p => p.lines.flatMap(l => l.points.flatMap(([, ...ys]) => ys))).filter(v => v !== null);
    const [low, high] = d3.extent(values), room = Math.max(0.5, 0.05 * (high - low));
    const domain = [Math.max(0, low - room), Math.min(100, high + room)];
    const last = d3.max(data.panels, p => d3.max(p.lines, l => d3.max(l.points, point => point[0])));
    const told = data.panels.some(p => p.lines.filter(l => !l.ghost).length > 1);
    const parts = data.panels.map((panel, index) => {
      const marks = panel.lines.flatMap(line => {
        const k = told ? data.names.indexOf(line.name) : 0;
        const stroke = line.ghost ? "var(--soft)" : colour(k), faint = line.ghost ? 0.55 : 1;
        const ends = line.points.some(p => p[1] === null) ? line.points.filter((p, i) => p[1] !== null && (line.points[i + 1]?.[1] ?? null) === null) : line.points.length < 4 ? line.points : [];
        return [
          line.points[0]?.length > 2 && !line.ghost ? Plot.areaY(line.points, { x: "0", y1: "2", y2: "3", fill: stroke, fillOpacity: 0.16 }) : null,
          Plot.line(line.points, { x: "0", y: "1", stroke, strokeOpacity: faint, strokeWidth: line.ghost ? 1.2 : 1.9,
            strokeDasharray: told && !line.ghost ? at(DASHES, k) : "", strokeLinejoin: "round" }),
          Plot.dot(ends, { x: "0", y: "1", fill: stroke, fillOpacity: faint, r: 2.4 }),
        ];
      });
      const pointed = panel.lines.filter(l => !l.ghost).flatMap(l => l.points.filter(p => p[1] !== null).map(p => ({ x: p[0], y: p[1], name: l.name })));
      const svg = image({
        width: each, height: alone ? Math.min(dense ? 240 : 340, Math.max(240, 0.5 * width)) : dense ? 98 : each < 200 ? 140 : 190, marginLeft: 40, marginBottom: 38, marginTop: 10, marginRight: 12,
        x: { domain: [0, last], label: data.x, labelAnchor: "center", labelArrow: "none", ticks: Math.min(last, each / (each < 200 ? 40 : 60)), tickFormat: d => Number.isInteger(d) ? String(d) : "" },
        y: { domain, label: null, ticks: 4, grid: false },
        marks: [
          Plot.gridY({ strokeOpacity: 0.12, ticks: 4 }), ...marks,
          Plot.tip(pointed, Plot.pointer({ x: "x", y: "y", title: d => `${d.name}\n${data.x} ${+d.x.toFixed(2)}: ${number(d.y)}` })),
        ],
      }, [data.y, panel.title, panel.lines.map(l => l.name).join(", ")].filter(Boolean).join(", "));
      return part(panel.title, each, svg);
    });
    return [...(told ? [key(data.names, "line")] : []), element("p", "key", `${data.y}`), ...parts];
  }

  /** ROC curves, one class each, with the point at 90 % specificity. */
  function roc(data, width) {
    const [, each] = columns(width, Math.max(2, data.curves.length), 185);
    const side = Math.min(each, 240);
    return data.curves.map(curve => part(`${curve.class}: AUC ${number(curve.auc)}`, side, image({
      width: side, height: side - 10, marginLeft: 46, marginBottom: 36, marginRight: 8, marginTop: 8,
      x: { domain: [0, 100], label: "100 − specificity (%)", labelAnchor: "center", labelArrow: "none", ticks: 3 },
      y: { domain: [0, 100], label: "sensitivity (%)", labelArrow: "none", labelAnchor: "center", ticks: 3 },
      marks: [
        Plot.line([[0, 0], [100, 100]], { ...soft, strokeDasharray: "3 3" }),
        Plot.ruleX([10], { stroke: "var(--s1)", strokeDasharray: "2 2" }),
        Plot.line(curve.points, { stroke: "var(--s0)", strokeWidth: 1.9, strokeLinejoin: "round" }),
        Plot.dot([curve.chosen], { fill: "var(--s1)", r: 4.5 }),
        Plot.text([curve.chosen], { text: d => `${number(d[1])} %`, dx: 8, dy: curve.chosen[1] > 90 ? 12 : 8, textAnchor: "start", lineAnchor: "top",
          fill: "currentColor", stroke: "var(--paper)", strokeWidth: 4 }),
      ],
    }, `ROC curve of ${curve.class}, ${curve.images} images: AUC ${number(curve.auc)} %, sensitivity ${number(curve.chosen[1])} % at 90 % specificity`)));
  }

  /** Reliability diagram: how often right, by how sure; larger points are more images. */
  function reliability(data, width) {
    const side = Math.min(width, 360), most = d3.max(data.bins, b => b.images);
    return [image({
      width: side, height: 0.85 * side, marginLeft: 44, marginBottom: 38, marginRight: 12, marginTop: 12,
      x: { domain: [0, 100], label: "probability of the predicted class (%)", labelAnchor: "center", labelArrow: "none", ticks: 5 },
      y: { domain: [0, 100], label: "right (%)", labelAnchor: "center", labelArrow: "none", ticks: 5 },
      r: { type: "identity" },
      marks: [
        Plot.line([[0, 0], [100, 100]], { ...soft, strokeDasharray: "3 3" }),
        Plot.line(data.bins, { x: "confidence", y: "accuracy", stroke: "var(--s0)", strokeWidth: 1.5 }),
        Plot.dot(data.bins, { x: "confidence", y: "accuracy", fill: "var(--s0)", fillOpacity: 0.75, r: d => 2.5 + 8 * Math.sqrt(d.images / most) }),
        Plot.tip(data.bins, Plot.pointer({ x: "confidence", y: "accuracy", title: d => `${d.images} images\nsure ${number(d.confidence)}, right ${number(d.accuracy)}` })),
      ],
    }, "Reliability diagram")];
  }

  /** Number of images of each class, a panel per split. */
  function balance(data, width) {
    const [, each] = columns(width, data.splits.length, 170);
    const side = Math.min(each, 260), left = Math.min(0.4 * side, d3.max(data.classes, measure) + 12);
    return data.splits.map(split => {
      const bars = data.classes.map((name, k) => ({ name, k, count: split.counts[k] }));
      return part(`${split.name}: ${d3.sum(split.counts)} images`, side, image({
        width: side, height: 21 * bars.length + 12, marginLeft: left, marginRight: 40, marginTop: 4, marginBottom: 4,
        x: { axis: null, domain: [0, Math.max(1, d3.max(split.counts))] }, y: { axis: null, domain: bars.map(d => d.k), padding: 0.25 },
        marks: [
          Plot.barX(bars, { x: "count", y: "k", fill: "var(--s0)", fillOpacity: 0.8 }),
          Plot.text(bars, { y: "k", text: "name", frameAnchor: "left", textAnchor: "start", dx: 2 - left, fill: "currentColor", lineWidth: left / 12, textOverflow: "ellipsis" }),
          Plot.text(bars, { x: "count", y: "k", text: "count", dx: 5, textAnchor: "start", fill: "currentColor" }),
        ],
      }, `${split.name}: ${bars.map(d => `${d.name} ${d.count}`).join(", ")}`));
    });
  }

  return { intervals, curves, roc, reliability, balance };
})();
