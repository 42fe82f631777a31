// The charts of a plan, the tabs, the span of rows in view, and the tables that filter. All data is in the page; nothing is fetched.
(() => {
  const data = JSON.parse(byId("data").textContent), K = data.microPerStep;
  const view = { from: 0, to: data.rows }, mode = { strip: "bucket", lanes: "bucket", grid: "megabytes", pareto: "1" };
  const WINDOW_COLOURS = { 1: "#9aa3ab", 8: "#4477aa", 64: "#44aa77", 512: "#aa4488" };
  document.documentElement.classList.add("js");

  // ---- the span of rows in view -------------------------------------------------------------------------------------------------
  const xOf = (row, box) => box.x + (row - view.from) / (view.to - view.from) * box.w;
  const rowAt = (x, box) => clamp(view.from + (x - box.x) / box.w * (view.to - view.from), 0, data.rows - 1e-6);
  const stepOf = (row) => data.firstStep + Math.floor(row / K);
  const epochOf = (row) => { let found = data.epochs[0][0]; for (const [epoch, first] of data.epochs) if (first <= row) found = epoch; return found; };
  const placeText = (row) => `step ${plain(stepOf(row))}, micro ${Math.floor(row) % K}, epoch ${epochOf(row)}`;

  function setView(from, to) {
    const length = clamp(to - from, Math.min(data.rows, 4), data.rows);
    view.from = clamp(from, 0, data.rows - length);
    view.to = view.from + length;
    for (const place of all(".zoom .span")) place.textContent = `steps ${plain(stepOf(view.from))} to ${plain(stepOf(Math.max(view.from, view.to - 1e-6)))} (${plain(Math.round(length))} of ${plain(data.rows)} rows)`;
    for (const slide of all(".slide")) { slide.disabled = length >= data.rows; slide.value = data.rows > length ? 1000 * view.from / (data.rows - length) : 0; }
    redraw();
  }
  function zoom(kind) {
    const length = view.to - view.from, middle = (view.from + view.to) / 2;
    if (kind === "all") setView(0, data.rows);
    if (kind === "out") setView(middle - 2 * length, middle + 2 * length);
    if (kind === "left") setView(view.from - length / 2, view.to - length / 2);
    if (kind === "right") setView(view.from + length / 2, view.to + length / 2);
  }

  function timeAxis(g, box) {
    const from = view.from / K + data.firstStep, to = view.to / K + data.firstStep;
    const marks = ticks(from, to, box.w / 90).filter((step) => Number.isInteger(step)).map((step) => [(step - data.firstStep) * K, plain(step)]);
    xAxis(g, box, marks, (row) => xOf(row, box), "step");
    for (const [epoch, first] of data.epochs) {
      const x = xOf(first, box);
      if (first === 0 || x <= box.x || x >= box.x + box.w) continue;
      g.strokeStyle = "#1d2329"; g.lineWidth = 1; g.setLineDash([2, 3]); g.beginPath(); g.moveTo(x, box.y); g.lineTo(x, box.y + box.h); g.stroke(); g.setLineDash([]);
      if (data.epochs.length < 40) { g.textAlign = "center"; g.textBaseline = "bottom"; g.fillStyle = "#4d565e"; g.fillText(`epoch ${epoch}`, x, box.y - 3); }
    }
    frame(g, box);
  }

  // A chart over rows: a click zooms in about the place, a drag to the span.
  function timeChart(id, options) {
    const self = chart(id, { draw: (g, box) => { options.draw(g, box); timeAxis(g, box); }, hover: options.hover && ((x, y, box) => options.hover(rowAt(x, box), y, box)) });
    if (!self) return;
    self.host.classList.add("zooms");
    let start = null;
    const xIn = (event) => clamp(event.clientX - self.canvas.getBoundingClientRect().left, self.box().x, self.box().x + self.box().w);
    self.canvas.addEventListener("pointerdown", (event) => { start = xIn(event); self.canvas.setPointerCapture(event.pointerId); });
    self.canvas.addEventListener("pointermove", (event) => {
      if (start === null) return;
      const x = xIn(event);
      self.brush.style.display = Math.abs(x - start) > 4 ? "block" : "none";
      self.brush.style.left = Math.min(x, start) + "px"; self.brush.style.width = Math.abs(x - start) + "px";
    });
    self.canvas.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const box = self.box(), one = rowAt(Math.min(start, xIn(event)), box), other = rowAt(Math.max(start, xIn(event)), box);
      const dragged = Math.abs(xIn(event) - start) > 4, length = view.to - view.from;
      start = null; self.brush.style.display = "none";
      if (dragged) setView(one, other); else setView(one - length / 8, one + length / 8);
    });
  }

  // ---- shares stacked over time: buckets by row, domains by step -------------------------------------------------------------------
  // Bins in view, put together into columns: where rows are narrower than a pixel, a column is whole steps, so that no pattern within steps shows as a ripple.
  function columnsInView(edges, box, stepLength) {
    const first = binOf(edges, view.from), last = binOf(edges, Math.min(view.to, data.rows) - 1e-6), count = last - first + 1;
    const every = count <= box.w ? 1 : Math.max(Math.ceil(count / box.w), Math.ceil(stepLength * count / (view.to - view.from)));
    return Array.from({ length: Math.ceil(count / every) }, (_, index) => [first + index * every, Math.min(first + (index + 1) * every, last + 1)]);
  }
  function stacked(g, box, edges, counts, size, colours, order) {
    g.fillStyle = "#fff"; g.fillRect(box.x, box.y, box.w, box.h);
    const sums = new Float64Array(size);
    for (const [low, high] of columnsInView(edges, box, K)) {
      let total = 0, y = box.y + box.h;
      sums.fill(0);
      for (let bin = low; bin < high; bin++) for (let k = 0; k < size; k++) { sums[k] += counts[bin * size + k]; total += counts[bin * size + k]; }
      const x0 = clamp(xOf(edges[low], box), box.x, box.x + box.w), x1 = clamp(xOf(edges[high], box), box.x, box.x + box.w);
      for (const k of order) {
        if (!sums[k]) continue;
        const height = sums[k] / total * box.h;
        g.fillStyle = colours[k]; g.fillRect(x0, y - height, x1 - x0 + 0.3, height + 0.3);
        y -= height;
      }
    }
  }
  function shareAxis(g, box, label) { yAxis(g, box, [0, 0.25, 0.5, 0.75, 1].map((v) => [v, 100 * v + "%"]), (v) => box.y + box.h * (1 - v), label, false); }
  const bucketOrder = data.buckets.map((_, index) => index).sort((a, b) => data.buckets[a].seconds - data.buckets[b].seconds || a - b);
  const bucketColours = (kind) => data.buckets.map((bucket) => kind === "tier" ? bucket.tierColour : bucket.colour);
  function bucketLegend(kind) {
    if (kind !== "tier") return bucketOrder.map((index) => [data.buckets[index].colour, data.buckets[index].name]);
    const tiers = new Map(data.buckets.map((bucket) => [bucket.tier, bucket]));
    return [...tiers.keys()].sort((a, b) => a - b).map((tier) => [tiers.get(tier).tierColour, `tier ${tier}: ` + data.buckets.filter((bucket) => bucket.tier === tier).map((bucket) => bucket.name).join(", ")]);
  }

  const strip = { edges: unpack(data.strip.edges), counts: unpack(data.strip.counts), slowest: unpack(data.strip.slowest), mean: unpack(data.strip.mean) };
  timeChart("strip", {
    draw(g, box) { stacked(g, box, strip.edges, strip.counts, data.buckets.length, bucketColours(mode.strip), bucketOrder); shareAxis(g, box, "share of lanes"); },
    hover(row) {
      const bin = binOf(strip.edges, row), size = data.buckets.length, length = strip.edges[bin + 1] - strip.edges[bin];
      const lines = [[null, placeText(strip.edges[bin]) + (length > 1 ? ` and ${length - 1} rows more` : "")]];
      for (const k of [...bucketOrder].reverse()) { const count = strip.counts[bin * size + k]; if (count) lines.push([data.buckets[k].colour, `${data.buckets[k].name}: ${percent(count / (length * data.lanes))} of lanes, ${data.buckets[k].clips} clips each, ${secondsText(data.buckets[k].seconds)}`]); }
      lines.push([null, `slowest lane ${secondsText(strip.slowest[bin])}`]);
      return lines;
    },
  });
  const costTop = strip.slowest.reduce((a, b) => Math.max(a, b), 0) * 1.08 || 1;
  legend("cost", [["#2f6690", "slowest lane; where rows are narrower than a pixel, their mean", "line"], ["#c9dae7", "span of those rows"]]);
  timeChart("cost", {
    draw(g, box) {
      const place = (value) => box.y + box.h * (1 - value / costTop), points = [];
      yAxis(g, box, ticks(0, costTop, 4).map((v) => [v, secondsText(v)]), place, "seconds");
      for (const [low, high] of columnsInView(strip.edges, box, K)) {
        let sum = 0, most = 0, least = Infinity;
        for (let bin = low; bin < high; bin++) { sum += strip.mean[bin] * (strip.edges[bin + 1] - strip.edges[bin]); most = Math.max(most, strip.slowest[bin]); least = Math.min(least, strip.mean[bin]); }
        const x0 = clamp(xOf(strip.edges[low], box), box.x, box.x + box.w), x1 = clamp(xOf(strip.edges[high], box), box.x, box.x + box.w), mean = place(sum / (strip.edges[high] - strip.edges[low]));
        if (high - low > 1 || most > least) { g.fillStyle = "#c9dae7"; g.fillRect(x0, place(most), x1 - x0 + 0.3, place(least) - place(most)); }
        points.push([x0, mean], [x1, mean]);
      }
      line(g, box, points, "#2f6690");
    },
    hover(row) {
      const bin = binOf(strip.edges, row), length = strip.edges[bin + 1] - strip.edges[bin];
      return [[null, placeText(strip.edges[bin])], ["#2f6690", length > 1 ? `mean of ${length} rows ${secondsText(strip.mean[bin])}, slowest ${secondsText(strip.slowest[bin])}` : secondsText(strip.slowest[bin])]];
    },
  });

  // Points of a staircase over the bins in view; where there are more bins than pixels, the largest of each pixel.
  function stepPoints(edges, values, box, place) {
    const first = binOf(edges, view.from), last = binOf(edges, view.to - 1e-6), points = [], every = Math.max(1, Math.floor((last - first + 1) / (box.w * 1.5)));
    for (let bin = first; bin <= last; bin += every) {
      let value = values[bin];
      for (let next = bin + 1; next < Math.min(bin + every, last + 1); next++) value = Math.max(value, values[next]);
      points.push([xOf(edges[bin], box), place(value)], [xOf(edges[Math.min(bin + every, last + 1)], box), place(value)]);
    }
    return points;
  }

  // ---- lanes by time --------------------------------------------------------------------------------------------------------------
  const picture = { lanes: unpack(data.picture.lanes), rows: unpack(data.picture.rows), cells: unpack(data.picture.cells) };
  const buffer = data.buffer && { ...data.buffer, edges: unpack(data.buffer.edges), levels: unpack(data.buffer.levels), highest: unpack(data.buffer.highest), median: unpack(data.buffer.median), lowest: unpack(data.buffer.lowest) };
  const bufferColumns = buffer ? buffer.levels.shape[1] : 0, columns = picture.rows.length;
  const pictureColumn = (row) => clamp(Math.floor(row * columns / data.rows), 0, columns - 1);
  function laneAxis(g, box, lanes) { yAxis(g, box, ticks(0, lanes.length - 1, Math.min(8, box.h / 24)).filter(Number.isInteger).map((at) => [at, lanes[at]]), (at) => box.y + (at + 0.5) / lanes.length * box.h, "lane", false); }
  timeChart("lanes", {
    draw(g, box) {
      const rowOf = (share) => view.from + share * (view.to - view.from);
      if (mode.lanes === "buffer") cells(g, box, picture.lanes.length, (share) => binOf(buffer.edges, rowOf(share)), (column, lane) => shade(buffer.levels[lane * bufferColumns + column] / 65535));
      else { const colours = bucketColours(mode.lanes).map(rgb); cells(g, box, picture.lanes.length, (share) => pictureColumn(rowOf(share)), (column, lane) => colours[picture.cells[lane * columns + column]]); }
      laneAxis(g, box, picture.lanes);
    },
    hover(row, y, box) {
      const at = clamp(Math.floor((y - box.y) / box.h * picture.lanes.length), 0, picture.lanes.length - 1), column = pictureColumn(row), bucket = data.buckets[picture.cells[at * columns + column]];
      const lines = [[null, `lane ${picture.lanes[at]}`], [null, placeText(picture.rows[column])], [bucket.colour, `${bucket.name}, ${bucket.clips} clips, tier ${bucket.tier}, ${secondsText(bucket.seconds)}`]];
      if (buffer) lines.push([null, `at most ${bytesText(buffer.levels[at * bufferColumns + binOf(buffer.edges, row)] / 65535 * buffer.top)} buffered about here`]);
      return lines;
    },
  });
  const shadeCss = (share) => `rgb(${shade(share).join(",")})`;

  // ---- mixing ---------------------------------------------------------------------------------------------------------------------
  for (const kind of ["buckets", "domains"]) {
    const series = data.mix[kind].map((item) => ({ ...item, middles: unpack(item.middles), values: unpack(item.values), colour: WINDOW_COLOURS[item.window] || "#333" }));
    if (!series.length) continue;
    const high = Math.max(...series.flatMap((item) => [item.floor, ...item.values])) * 1.2, low = Math.min(...series.map((item) => Math.min(item.floor, [...item.values].reduce((a, b) => a + b, 0) / item.values.length || item.floor))) / 3;
    const place = (value, box) => box.y + box.h * (1 - Math.log(Math.max(value, low) / low) / Math.log(high / low));
    legend(`mix-${kind}`, series.flatMap((item) => [[item.colour, `w = ${item.window}`, "line"], [item.colour, "random draws", "dashed"]]));
    timeChart(`mix-${kind}`, {
      draw(g, box) {
        yAxis(g, box, logTicks(low, high).map((v) => [v, plain(v)]), (v) => place(v, box), "total variation");
        for (const item of series) {
          line(g, box, [[box.x, place(item.floor, box)], [box.x + box.w, place(item.floor, box)]], item.colour, { dash: [6, 4], width: 1.2 });
          line(g, box, [...item.middles].map((step, index) => [xOf(step * K, box), place(item.values[index], box)]), item.colour, { width: item.window === 1 ? 1 : 1.8 });
        }
      },
      hover(row) {
        return [[null, `about step ${plain(stepOf(row))}; TV of windows around it / random draws`], ...series.map((item) => {
          let near = 0;
          item.middles.forEach((step, index) => { if (Math.abs(step * K - row) < Math.abs(item.middles[near] * K - row)) near = index; });
          return [item.colour, `w = ${item.window}: ${item.values[near].toFixed(4)} / ${item.floor.toFixed(4)}`];
        })];
      },
    });
  }
  if (data.domains && byId("domains")) {
    const edges = unpack(data.domains.edges).map((step) => step * K), counts = unpack(data.domains.counts), groups = data.domains.groups, order = groups.map((_, index) => index);
    legend("domains", groups.map((group) => [group.colour, group.name]));
    timeChart("domains", {
      draw(g, box) { stacked(g, box, edges, counts, groups.length, groups.map((group) => group.colour), order); shareAxis(g, box, "share of clips"); },
      hover(row) {
        const bin = binOf(edges, row), part = counts.subarray(bin * groups.length, (bin + 1) * groups.length), total = part.reduce((a, b) => a + b, 0) || 1;
        return [[null, `from step ${plain(stepOf(edges[bin]))}`], ...groups.map((group, index) => [group.colour, `${group.name}: ${percent(part[index] / total)}`])];
      },
    });
  }

  // ---- idle time against mixing ---------------------------------------------------------------------------------------------------
  chart("pareto", {
    points() {
      const index = mode.pareto === "1" ? 2 : 3, own = data.pareto[mode.pareto === "1" ? "index1" : "index8"];
      const found = data.pareto.points.map((point) => ({ x: point[index], y: point[1], text: `${point[0]}`, tip: `${point[0]} tiers: idle ${percent(point[1])}, mix index ${plain(point[index])}`, own: point[0] === data.pareto.tiers }));
      if (own !== null && own !== undefined) found.push({ x: own, y: data.pareto.waste, text: "", measured: true, tip: `this plan, measured in its lanes: idle ${percent(data.pareto.waste)}, mix index ${plain(own)}` });
      return found;
    },
    scales(box) {
      const points = this.points(), floor = Math.min(...points.map((p) => p.x).filter((x) => x > 0)), low = Math.min(floor, 1) / 1.3, high = Math.max(1, ...points.map((p) => p.x)) * 1.3, top = Math.max(0.01, ...points.map((p) => p.y)) * 1.12;
      return { low, high, top, x: (v) => box.x + Math.log(Math.max(v, low) / low) / Math.log(high / low) * box.w, y: (v) => box.y + box.h * (1 - v / top) };
    },
    draw(g, box) {
      const points = this.points(), scale = this.scales(box);
      yAxis(g, box, ticks(0, scale.top, 5).map((v) => [v, percent(v)]), scale.y, "idle share, predicted");
      xAxis(g, box, logTicks(scale.low, scale.high).map((v) => [v, plain(v)]), scale.x, `mix index over ${mode.pareto === "1" ? "1 step" : "8 steps"} (left is better)`);
      line(g, box, [[scale.x(1), box.y], [scale.x(1), box.y + box.h]], "#68727b", { dash: [3, 3], width: 1 });
      line(g, box, points.filter((p) => !p.measured).map((p) => [scale.x(p.x), scale.y(p.y)]), "#b9bfc5");
      for (const p of points) {
        const x = scale.x(p.x), y = scale.y(p.y);
        g.fillStyle = p.own ? "#2f6690" : p.measured ? "#0000" : "#fff"; g.strokeStyle = p.measured ? "#b3563e" : "#2f6690"; g.lineWidth = p.measured ? 2.2 : 1.6;
        g.beginPath();
        if (p.measured) { g.moveTo(x, y - 9); g.lineTo(x + 9, y); g.lineTo(x, y + 9); g.lineTo(x - 9, y); g.closePath(); } else g.arc(x, y, 5, 0, 7);
        g.fill(); g.stroke();
        g.textAlign = "left"; g.textBaseline = "bottom"; g.fillStyle = "#1d2329"; g.fillText(p.text, x + 7, y - 4);
      }
      frame(g, box);
    },
    hover(x, y, box) {
      const scale = this.scales(box);
      const near = this.points().map((p) => [Math.hypot(scale.x(p.x) - x, scale.y(p.y) - y), p]).sort((a, b) => a[0] - b[0])[0];
      return near && near[0] < 24 ? [[null, near[1].tip]] : null;
    },
  });
  legend("pareto", [["#2f6690", "this plan's number of tiers, by the model"], ["#b3563e", "this plan, measured in its lanes"], ["#68727b", "a random order", "dashed"], ["#b9bfc5", "other numbers of tiers", "line"]]);

  // ---- buffers --------------------------------------------------------------------------------------------------------------------
  const laneBox = byId("buffer-lane");
  if (buffer && laneBox) {
    laneBox.value = buffer.peak.lane;
    const highest = buffer.highest.reduce((a, b) => Math.max(a, b), 1), showCap = buffer.cap <= 3 * highest, top = (showCap ? Math.max(buffer.cap, highest) : highest) * 1.08;
    const place = (value, box) => box.y + box.h * (1 - value / top);
    const ownLevel = (bin) => { const at = picture.lanes.indexOf(Number(laneBox.value)); return at < 0 ? NaN : buffer.levels[at * bufferColumns + bin] / 65535 * buffer.top; };
    legend("buffer", [["#b3563e", "fullest lane", "line"], ["#2f6690", "median lane", "line"], ["#44aa77", "emptiest lane", "line"], ["#aa4488", "the lane chosen", "line"], ["#1d2329", `cap ${bytesText(buffer.cap)}${showCap ? "" : ", above the picture"}`, "dashed"]]);
    timeChart("buffer", {
      draw(g, box) {
        const y = (value) => place(value, box);
        yAxis(g, box, ticks(0, top, 5).map((v) => [v, bytesText(v)]), y, "bytes on a lane");
        if (picture.lanes.indexOf(Number(laneBox.value)) >= 0) line(g, box, stepPoints(buffer.edges, Float64Array.from({ length: bufferColumns }, (_, bin) => ownLevel(bin)), box, y), "#aa4488", { width: 1 });
        for (const [values, colour] of [[buffer.lowest, "#44aa77"], [buffer.median, "#2f6690"], [buffer.highest, "#b3563e"]]) line(g, box, stepPoints(buffer.edges, values, box, y), colour, { width: 1.7 });
        if (showCap) line(g, box, [[box.x, y(buffer.cap)], [box.x + box.w, y(buffer.cap)]], "#1d2329", { dash: [6, 4] });
        const x = xOf(buffer.peak.row + 0.5, box);
        if (x >= box.x && x <= box.x + box.w) {
          g.fillStyle = "#b3563e"; g.beginPath(); g.arc(x, y(buffer.peak.bytes), 4.5, 0, 7); g.fill();
          g.fillStyle = "#1d2329"; g.textBaseline = "bottom"; g.textAlign = x > box.x + box.w - 220 ? "right" : "left";
          g.save(); g.strokeStyle = "#fff"; g.lineWidth = 4;
          for (const write of [g.strokeText, g.fillText]) write.call(g, `peak ${bytesText(buffer.peak.bytes)}, lane ${buffer.peak.lane}, step ${plain(stepOf(buffer.peak.row))}`, x + (g.textAlign === "right" ? -8 : 8), y(buffer.peak.bytes) + 16);
          g.restore();
        }
      },
      hover(row) {
        const bin = binOf(buffer.edges, row), own = ownLevel(bin), rows = buffer.edges[bin + 1] - buffer.edges[bin];
        const lines = [[null, placeText(buffer.edges[bin]) + (rows > 1 ? `; largest of ${rows} rows` : "")], ["#b3563e", `fullest ${bytesText(buffer.highest[bin])}`], ["#2f6690", `median ${bytesText(buffer.median[bin])}`], ["#44aa77", `emptiest ${bytesText(buffer.lowest[bin])}`]];
        if (!Number.isNaN(own)) lines.push(["#aa4488", `lane ${laneBox.value}: ${bytesText(own)}`]);
        return lines;
      },
    });
    laneBox.addEventListener("input", redraw);
  }
  const perLane = Object.fromEntries(Object.entries(data.perLane).map(([name, packed]) => [name, unpack(packed)]));
  const peakTop = perLane.peakBytes.reduce((a, b) => Math.max(a, b), 1) * 1.08, peakLane = perLane.peakBytes.indexOf(Math.max(...perLane.peakBytes));
  chart("peaks", {
    draw(g, box) {
      const place = (value) => box.y + box.h * (1 - value / peakTop), width = box.w / data.lanes;
      yAxis(g, box, ticks(0, peakTop, 4).map((v) => [v, bytesText(v)]), place, "peak bytes");
      perLane.peakBytes.forEach((value, lane) => {
        g.fillStyle = lane === peakLane ? "#b3563e" : "#7fa3c0";
        g.fillRect(box.x + lane * width, place(value), Math.max(0.6, width - (width > 4 ? 1 : 0)), box.y + box.h - place(value));
      });
      xAxis(g, box, ticks(0, data.lanes - 1, box.w / 70).filter(Number.isInteger).map((lane) => [lane, plain(lane)]), (lane) => box.x + (lane + 0.5) * width, "lane");
      frame(g, box);
    },
    hover(x, y, box) { const lane = clamp(Math.floor((x - box.x) / box.w * data.lanes), 0, data.lanes - 1); return [[null, `lane ${lane}: peak ${bytesText(perLane.peakBytes[lane])}`], [null, `at most ${perLane.peakOpen[lane]} shards open`], [null, `cap ${bytesText(data.bufferCap)}`]]; },
  });
  const open = { ...data.open, edges: unpack(data.open.edges), most: unpack(data.open.most), mean: unpack(data.open.mean) };
  const openTop = Math.max(open.cap && open.cap <= 20 ? open.cap : 1, open.most.reduce((a, b) => Math.max(a, b), 0)) * 1.15;
  legend("open", [["#b3563e", "lane with most", "line"], ["#2f6690", "mean over lanes", "line"], ...(open.cap ? [["#1d2329", `cap ${open.cap}`, "dashed"]] : [])]);
  timeChart("open", {
    draw(g, box) {
      const place = (value) => box.y + box.h * (1 - value / openTop);
      yAxis(g, box, ticks(0, openTop, 4).filter(Number.isInteger).map((v) => [v, plain(v)]), place, "shards");
      for (const [values, colour] of [[open.mean, "#2f6690"], [open.most, "#b3563e"]]) line(g, box, stepPoints(open.edges, values, box, place), colour);
      if (open.cap) line(g, box, [[box.x, place(open.cap)], [box.x + box.w, place(open.cap)]], "#1d2329", { dash: [6, 4] });
    },
    hover(row) { const bin = binOf(open.edges, row); return [[null, placeText(open.edges[bin])], ["#b3563e", `most ${open.most[bin]}`], ["#2f6690", `mean ${plain(open.mean[bin])}`]]; },
  });

  // ---- reads ----------------------------------------------------------------------------------------------------------------------
  const grid = { edges: unpack(data.grid.edges), opens: unpack(data.grid.opens), megabytes: unpack(data.grid.megabytes) }, gridColumns = grid.opens.shape[1];
  const gridTop = { opens: grid.opens.reduce((a, b) => Math.max(a, b), 1), megabytes: grid.megabytes.reduce((a, b) => Math.max(a, b), 1e-9) };
  chart("grid", {
    draw(g, box) {
      const values = grid[mode.grid], top = gridTop[mode.grid];
      cells(g, box, picture.lanes.length, (share) => Math.floor(share * gridColumns), (column, lane) => { const value = values[lane * gridColumns + column]; return value ? shade(0.15 + 0.85 * value / top) : [255, 255, 255]; });
      laneAxis(g, box, picture.lanes);
      xAxis(g, box, ticks(0, data.shards.length, box.w / 80).filter(Number.isInteger).map((shard) => [shard, plain(shard)]), (shard) => box.x + shard / data.shards.length * box.w, "shard");
      frame(g, box);
    },
    hover(x, y, box) {
      const column = clamp(Math.floor((x - box.x) / box.w * gridColumns), 0, gridColumns - 1), at = clamp(Math.floor((y - box.y) / box.h * picture.lanes.length), 0, picture.lanes.length - 1);
      const first = grid.edges[column], last = grid.edges[column + 1] - 1, cell = at * gridColumns + column;
      return [[null, `lane ${picture.lanes[at]}`], [null, first === last ? data.shards[first] : `${data.shards[first]} to ${data.shards[last]}`], [null, `${plain(grid.opens[cell])} opens, ${bytesText(grid.megabytes[cell] * 1e6)}`]];
    },
  });

  // ---- the ledger -----------------------------------------------------------------------------------------------------------------
  const ledgerBox = byId("ledger-filter");
  function filterLedger() {
    const wanted = ledgerBox.value.toLowerCase();
    let clips = 0, lines = 0;
    for (const row of all("table.ledger tbody tr")) {
      const hit = [...row.cells].slice(0, 4).map((cell) => cell.textContent).join(" ").toLowerCase().includes(wanted);
      row.classList.toggle("off", !hit);
      if (hit) { lines += 1; clips += Number(row.cells[4].textContent.replaceAll(",", "")); }
    }
    byId("ledger-sum").textContent = `${plain(lines)} lines, ${plain(clips)} clips`;
  }
  if (ledgerBox) { ledgerBox.addEventListener("input", filterLedger); filterLedger(); }

  // ---- what a rank reads ----------------------------------------------------------------------------------------------------------
  const visits = Object.fromEntries(Object.entries(data.visits).map(([name, value]) => [name, name === "total" ? value : unpack(value)]));
  const chosen = { lanes: [0], rows: [] }, world = byId("world"), rankBox = byId("rank"), SHOWN = 500, MOST_BANDS = 64;
  world.replaceChildren(...data.worlds.map((size) => new Option(size, size)));
  world.value = data.worlds.find((size) => size > 1) || 1;
  function fact(value, name) { const box = document.createElement("div"), big = document.createElement("b"); box.className = "fact"; big.textContent = value; box.append(big, name); return box; }
  function showRank() {
    const size = Number(world.value), rank = clamp(Math.floor(Number(rankBox.value) || 0), 0, size - 1), per = data.lanes / size;
    rankBox.max = size - 1;
    chosen.lanes = Array.from({ length: per }, (_, index) => rank * per + index);
    const sum = (values) => chosen.lanes.reduce((total, lane) => total + values[lane], 0), inRank = new Set(chosen.lanes);
    chosen.rows = [];
    visits.lane.forEach((lane, index) => { if (inRank.has(lane)) chosen.rows.push(index); });
    byId("rank-facts").replaceChildren(
      fact(per === 1 ? `${chosen.lanes[0]}` : `${chosen.lanes[0]} to ${chosen.lanes[per - 1]}`, per === 1 ? "lane" : "lanes"), fact(plain(sum(perLane.clips)), "clips used"), fact(bytesText(sum(perLane.bytes)), "read"),
      fact(plain(sum(perLane.reads)), "byte ranges"), fact(plain(chosen.rows.length), visits.total > visits.lane.length ? "opens (first epochs)" : "opens"), fact(plain(new Set(chosen.rows.map((index) => visits.shard[index])).size), "shards"),
      fact(bytesText(sum(perLane.peakBytes)), "buffer at most"), fact(secondsText(sum(perLane.seconds)), "predicted busy"));
    showVisits();
    redraw();
  }
  function showVisits() {
    const wanted = byId("shard-filter").value.toLowerCase(), body = all("table.visits tbody")[0];
    const hits = chosen.rows.filter((index) => data.shards[visits.shard[index]].toLowerCase().includes(wanted));
    body.replaceChildren(...hits.slice(0, SHOWN).map((index) => {
      const row = document.createElement("tr");
      [data.shards[visits.shard[index]], visits.lane[index], visits.epoch[index], plain(stepOf(visits.first[index])), plain(stepOf(visits.last[index])), plain(visits.reads[index]), bytesText(visits.bytes[index])].forEach((text, column) => { const cell = row.insertCell(); cell.textContent = text; if (column) cell.className = "n"; });
      return row;
    }));
    const left = visits.total > visits.lane.length ? `; the page holds the first ${plain(visits.lane.length)} of ${plain(visits.total)} opens of all lanes, earliest epochs first` : "";
    byId("visit-sum").textContent = `${plain(Math.min(SHOWN, hits.length))} of ${plain(hits.length)} opens shown${left}`;
  }
  const spanColour = (shard, lighter) => `hsl(${(shard * 137.5) % 360} 45% ${lighter ? 62 : 55}%)`;
  const bands = () => chosen.lanes.slice(0, MOST_BANDS);
  timeChart("gantt", {
    draw(g, box) {
      const lanes = bands(), height = box.h / lanes.length, depth = new Map();
      g.fillStyle = "#fff"; g.fillRect(box.x, box.y, box.w, box.h);
      for (const index of chosen.rows) {
        const band = visits.lane[index] - lanes[0];
        if (band >= lanes.length || visits.last[index] < view.from || visits.first[index] > view.to) continue;
        const x0 = clamp(xOf(visits.first[index], box), box.x, box.x + box.w), x1 = clamp(xOf(visits.last[index] + 1, box), box.x, box.x + box.w), sub = (depth.get(band) || 0) % 3;
        depth.set(band, sub + 1);
        g.fillStyle = spanColour(visits.shard[index]);
        g.fillRect(x0, box.y + band * height + height * (0.06 + 0.3 * sub), Math.max(1, x1 - x0 - 0.5), Math.max(1, height * 0.28));
      }
      laneAxis(g, box, lanes);
    },
    hover(row, y, box) {
      const lanes = bands(), lane = lanes[clamp(Math.floor((y - box.y) / box.h * lanes.length), 0, lanes.length - 1)];
      const here = chosen.rows.filter((index) => visits.lane[index] === lane && visits.first[index] <= row + 0.5 && visits.last[index] >= row - 0.5);
      return [[null, `lane ${lane}, ${placeText(row)}: ${here.length} open`], ...here.slice(0, 8).map((index) => [spanColour(visits.shard[index]), `${data.shards[visits.shard[index]]}: steps ${plain(stepOf(visits.first[index]))} to ${plain(stepOf(visits.last[index]))}, ${bytesText(visits.bytes[index])}`])];
    },
  });
  world.addEventListener("change", showRank);
  rankBox.addEventListener("input", showRank);
  byId("shard-filter").addEventListener("input", showVisits);

  // ---- tabs and choices -----------------------------------------------------------------------------------------------------------
  function legends() {
    legend("strip", bucketLegend(mode.strip));
    legend("lanes", mode.lanes === "buffer" ? [0, 0.25, 0.5, 0.75, 1].map((share) => [shadeCss(share), bytesText(share * buffer.top)]) : bucketLegend(mode.lanes));
    legend("grid", [["#ffffff", "none"], ...[0.01, 0.5, 1].map((share) => [shadeCss(0.15 + 0.85 * share), mode.grid === "opens" ? plain(Math.max(1, Math.round(share * gridTop.opens))) : bytesText(share * gridTop.megabytes * 1e6)])]);
  }
  function redraw() { for (const item of charts) item.draw(); }
  function showTab(name) {
    for (const tab of all(".tab")) tab.classList.toggle("on", tab.dataset.tab === name);
    for (const button of all("button[data-tab]")) button.classList.toggle("on", button.dataset.tab === name);
    history.replaceState(null, "", "#" + name);
    redraw();
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.tab) showTab(button.dataset.tab);
    if (button.dataset.zoom) zoom(button.dataset.zoom);
    if (button.dataset.choice) {
      mode[button.dataset.choice] = button.dataset.value;
      for (const other of all(`button[data-choice="${button.dataset.choice}"]`)) other.classList.toggle("on", other === button);
      legends();
      redraw();
    }
  });
  for (const slide of all(".slide")) slide.addEventListener("input", () => { const length = view.to - view.from, from = slide.value / 1000 * (data.rows - length); setView(from, from + length); });
  window.addEventListener("resize", redraw);
  legends();
  showTab(all(".tab").some((tab) => tab.dataset.tab === location.hash.slice(1)) ? location.hash.slice(1) : "overview");
  showRank();
  setView(0, data.rows);
})();
