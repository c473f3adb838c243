"use strict";
(() => {
  const SHOWN = 20;
  const data = JSON.parse(document.getElementById("data").textContent);
  const field = (id) => document.getElementById(id);
  const sheets = field("sheets");
  let first = 0;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const fill = (select, values) => {
    const chosen = select.value;
    select.replaceChildren(...values.map(([value, text]) => {
      const option = element("option", "", text);
      option.value = value;
      return option;
    }));
    if (values.some(([value]) => value === chosen)) select.value = chosen;
    select.closest("label").hidden = values.length < 2;
    select.closest("label").style.display = values.length < 2 ? "none" : "";
  };

  const unique = (values) => [...new Set(values)];
  const isHit = (query) => query.first === 1;
  const current = () => data.sets.find((set) =>
    set.run === field("run").value && set.protocol === field("protocol").value && set.kind === field("kind").value);

  const fillSets = () => {
    fill(field("run"), unique(data.sets.map((set) => set.run)).map((name) => [name, name]));
    const own = data.sets.filter((set) => set.run === field("run").value);
    fill(field("protocol"), unique(own.map((set) => set.protocol)).map((name) => [name, name]));
    const kinds = own.filter((set) => set.protocol === field("protocol").value);
    fill(field("kind"), kinds.map((set) => [set.kind, set.kind]));
    const others = data.sets.map((set, place) => [set, String(place)])
      .filter(([set]) => set !== current() && set.protocol === field("protocol").value)
      .map(([set, place]) => [place, `${set.run}, ${set.kind}`]);
    fill(field("other"), [["", "nothing"], ...others]);
  };

  const outcomes = new Map();
  const outcomeOf = (set, name) => {
    if (!outcomes.has(set)) outcomes.set(set, new Map(set.queries.map((query) => [data.images[query.q].n, query])));
    return outcomes.get(set).get(name);
  };

  const matches = (query) => {
    const image = data.images[query.q];
    const sensor = field("sensor").value, ship = field("ship").value.trim(), show = field("show").value;
    if (sensor && image.m !== sensor) return false;
    if (ship && String(image.s) !== ship) return false;
    if (show === "hit") return isHit(query);
    if (show === "miss") return query.first > 1;
    if (show === "none") return query.first === 0;
    if (show === "won" || show === "lost") {
      const other = data.sets[field("other").value];
      const there = other && outcomeOf(other, image.n);
      if (!there || !query.first || !there.first) return false;
      return show === "won" ? isHit(query) && !isHit(there) : !isHit(query) && isHit(there);
    }
    return true;
  };

  const overlay = (grid) => {
    const canvas = element("canvas");
    canvas.width = grid.columns;
    canvas.height = grid.rows;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(grid.columns, grid.rows);
    const bytes = atob(grid.bytes);
    for (let place = 0; place < bytes.length; place += 1) {
      pixels.data.set([255, 90, 0, bytes.charCodeAt(place) * 0.72], 4 * place);
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  };

  const breakable = (name) => name.split(/(?<=_)/).flatMap((part) => [part, element("wbr")]);

  const shot = (kind, uri, grid, lines) => {
    const figure = element("figure", `shot ${kind}`), frame = element("div", "frame");
    if (uri) {
      const stack = element("div", "stack"), picture = element("img");
      picture.src = uri;
      picture.alt = lines.join(", ");
      stack.append(picture);
      if (grid) stack.append(overlay(grid));
      frame.append(stack);
    } else {
      frame.append(element("span", "absent", "picture not found"));
    }
    const caption = element("figcaption");
    caption.append(element("b", "", lines[0]), ...lines.slice(1).flatMap((line) => [element("br"), ...breakable(line)]));
    figure.append(frame, caption);
    return figure;
  };

  const told = (distance) => (distance >= 0.01 || distance === 0 ? distance.toFixed(3) : distance.toExponential(1));
  const stem = (name) => name.replace(/\.[^.]*$/, "");
  const nameOf = (image) => (image.s < 0 ? "distractor" : `ship ${image.s}`);

  const found = (set, query, place, rank, distance) => {
    const image = data.images[place], own = image.s === data.images[query.q].s && image.s >= 0;
    const grid = data.rollouts[set.run]?.[place];
    const lines = [`${rank} ${own ? "✓" : "✗"} ${told(distance)}`, nameOf(image), stem(image.n)];
    return shot(own ? "hit" : "miss", data.pictures[image.p], grid, lines);
  };

  const sheet = (set, query) => {
    const image = data.images[query.q], article = element("article", "sheet");
    article.append(element("h3", "", image.n));
    const where = query.first ? `true ship at rank ${query.first} of ${set.gallery}, distance ${told(query.md)}, ` +
      `AP ${(100 * query.ap).toFixed(1)}` : "no picture of this ship in the gallery; it does not count";
    article.append(element("p", "facts", `${nameOf(image)}, ${image.m}, ${image.w} × ${image.h} pixels; ${where}`));
    const row = element("div", "row"), asked = element("div", "asked"), list = element("div", "found");
    asked.append(shot("own", data.pictures[image.p], data.rollouts[set.run]?.[query.q], ["query", image.m]));
    image.g.forEach((key, number) => asked.append(shot("own", data.pictures[key], null, [`generated ${number + 1}`])));
    asked.classList.toggle("several", image.g.length > 0);
    query.near.forEach((place, rank) => list.append(found(set, query, place, rank + 1, query.dist[rank])));
    if (query.first > query.near.length) list.append(found(set, query, query.match, query.first, query.md));
    row.append(asked, list);
    article.append(row);
    return article;
  };

  const draw = () => {
    const set = current(), chosen = set.queries.filter(matches);
    first = Math.max(0, Math.min(first, SHOWN * Math.floor((chosen.length - 1) / SHOWN)));
    const last = Math.min(first + SHOWN, chosen.length);
    sheets.replaceChildren(...chosen.slice(first, last).map((query) => sheet(set, query)));
    field("count").textContent = chosen.length ? `${first + 1} to ${last} of ${chosen.length}` : "no query is left by these filters";
    field("before").disabled = first === 0;
    field("after").disabled = last >= chosen.length;
  };

  const turn = (step) => {
    const before = first;
    first += step * SHOWN;
    draw();
    if (first !== before) field("sheets-title").scrollIntoView();
  };

  const refresh = () => {
    first = 0;
    fillSets();
    draw();
  };

  document.querySelectorAll("#filters select").forEach((select) => select.addEventListener("change", refresh));
  field("ship").addEventListener("input", refresh);
  field("looked").addEventListener("change", (event) => sheets.classList.toggle("looked", event.target.checked));
  field("filters").addEventListener("submit", (event) => event.preventDefault());
  field("before").addEventListener("click", () => turn(-1));
  field("after").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "ArrowLeft" && !field("before").disabled) turn(-1);
    if (event.key === "ArrowRight" && !field("after").disabled) turn(1);
  });
  field("looked").closest("label").style.display = Object.keys(data.rollouts).length ? "" : "none";
  fillSets();
  draw();
})();
