// The live page: draws the documents of /events. Every text goes into the page as text, never as markup.
'use strict';

const SVG = 'http://www.w3.org/2000/svg';
const SILENT_MS = 3500;
// answers of the window that are older than this are no longer of now
const OLD_MS = 3000;
const feeds = new Map();
const names = new URLSearchParams(location.search).get('feeds');

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === 'class') made.className = value;
    else if (name === 'text') made.textContent = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const count = number => Number(number).toLocaleString('en-US', {maximumFractionDigits: 1});

// a value as it is, not rounded to be read at a glance: all digits that a double has for certain
const exact = number => Number.isInteger(number) ? count(number)
  : number.toLocaleString('en-US', {maximumSignificantDigits: 15});

function seconds(number) {
  if (number === null || number === undefined) return '–';
  if (number < 1) return `${Math.round(number * 1000)} ms`;
  if (number < 120) return `${number.toFixed(number < 10 ? 2 : 0)} s`;
  if (number < 7200) return `${Math.round(number / 60)} min`;
  return number < 172800 ? `${Math.round(number / 3600)} h` : `${Math.round(number / 86400)} days`;
}

function percentiles(found) {
  return found ? `${seconds(found.p50)} · ${seconds(found.p95)} · ${seconds(found.p99)}` : '–';
}

const time = text => text ? text.slice(11, 23) : '–';

// what a feed's head says: label, and the text of its value
const FIGURES = [
  ['Rows per second', feed => count(feed.rate)],
  ['Behind the source', feed => seconds(feed.lag_s)],
  ['Age when seen, p50 · p95 · p99', feed => percentiles(feed.latency.seen)],
  ['Age when landed, p50 · p95 · p99', feed => percentiles(feed.latency.landed)],
  ['Seen', feed => count(feed.rows_seen)],
  ['Landed', feed => count(feed.rows_landed)],
  ['Late', feed => count(feed.rows_late)],
  ['Duplicate', feed => count(feed.rows_duplicate)],
  ['Sent again', feed => count(feed.rows_known)],
  ['In quarantine', feed => count(feed.rows_quarantined)],
  ['In the window', feed => `${count(feed.window.rows)} rows, ${(feed.window.size_bytes / 1048576).toFixed(1)} MiB`],
];

function makeFeed(name) {
  const id = `feed-${name}`;
  const view = {figures: [], tiles: new Map(), drawn: new Map()};
  view.link = element('a', {href: `#${id}`});
  view.item = element('li', {}, view.link);
  view.badge = element('span', {class: 'badge', role: 'status'});
  view.said = element('span', {class: 'said'});
  view.description = element('p', {class: 'said'});
  const figures = element('dl');
  for (const [label] of FIGURES) {
    const value = element('dd', {text: '–'});
    view.figures.push(value);
    figures.append(element('div', {}, element('dt', {text: label}), value));
  }
  view.rates = makeChart('Rows per second; late, duplicate or sent again in yellow, quarantined in red');
  view.ages = makeChart('Age of rows when they were seen, 95th percentile');
  view.tileGrid = element('div', {class: 'grid'});
  view.rows = makePart('Last rows', name);
  view.rules = makePart('Rules broken in the window', name);
  view.broken = makePart('Rows that break a rule', name);
  view.quarantine = makePart('Quarantine', name);
  const heading = element('h2', {id: `${id}-title`, text: name});
  view.section = element('section', {class: 'feed', id, 'aria-labelledby': `${id}-title`},
    element('div', {class: 'head'}, heading, view.badge, view.said), view.description, figures,
    element('div', {class: 'grid'}, view.rates.figure, view.ages.figure), view.tileGrid,
    view.rows.part, element('div', {class: 'grid'}, view.rules.part, view.quarantine.part), view.broken.part);
  document.getElementById('feeds').append(view.section);
  document.getElementById('index').append(view.item);
  return view;
}

function makePart(title, name) {
  const body = element('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `${title} of ${name}`});
  const heading = element('h3', {text: title});
  return {part: element('div', {class: 'part'}, heading, body), body, heading, title};
}

function makeChart(title) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 240 60');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('role', 'img');
  const caption = element('figcaption', {text: title});
  return {svg, caption, title, figure: element('figure', {class: 'part'}, svg, caption)};
}

function shape(tag, options) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(options)) made.setAttribute(name, value);
  return made;
}

function bars(layers, width, height) {
  const most = Math.max(1e-9, ...layers[0].values);
  const step = width / layers[0].values.length;
  const shapes = [];
  layers.forEach(({values, kind}) => values.forEach((value, place) => {
    if (!value) return;
    const tall = Math.max(1.5, Math.min(height, height * value / most));
    shapes.push(shape('rect', {class: kind, x: place * step, y: height - tall, width: Math.max(0.5, step - 0.4), height: tall}));
  }));
  return shapes;
}

function path(values, width, height) {
  const known = values.filter(value => value !== null);
  const most = Math.max(1e-9, ...known);
  let text = '', pen = false;
  values.forEach((value, place) => {
    if (value === null) { pen = false; return; }
    const x = (place + 0.5) * width / values.length, y = height - 2 - (height - 4) * value / most;
    text += `${pen ? 'L' : 'M'}${x.toFixed(2)} ${y.toFixed(2)}${pen ? '' : `l0.01 0`}`;
    pen = true;
  });
  return shape('path', {class: 'line', d: text, 'stroke-linecap': 'round'});
}

function drawCharts(view, series) {
  const {rates, ages} = view;
  const span = seconds(series.step_s * series.rates.length);
  rates.svg.replaceChildren(...bars([{values: series.rates, kind: 'bar'},
    {values: series.odd.map(value => value / series.step_s), kind: 'odd'},
    {values: series.quarantined.map(value => value / series.step_s), kind: 'bad'}], 240, 60));
  const highest = Math.max(0, ...series.rates);
  rates.svg.setAttribute('aria-label', `${rates.title}: highest ${count(highest)} in the last ${span}`);
  say(rates.caption, `${rates.title}. Last ${span}, up to ${count(highest)}`);
  const known = series.latency_p95.filter(value => value !== null);
  ages.svg.replaceChildren(path(series.latency_p95, 240, 60));
  const oldest = known.length ? seconds(Math.max(...known)) : '–';
  ages.svg.setAttribute('aria-label', `${ages.title}: highest ${oldest} in the last ${span}`);
  say(ages.caption, `${ages.title}. Last ${span}, up to ${oldest}`);
}

function cell(value) {
  if (value === null) return element('td', {class: 'null', text: 'null'});
  if (typeof value === 'number') return element('td', {class: 'n', text: String(value)});
  return element('td', {class: 'cut', title: String(value), text: String(value)});
}

function marks(found) {
  return element('td', {}, ...found.map(mark => element('span', {class: `mark ${mark}`, text: mark})));
}

function table(columns, rows) {
  return element('table', {}, element('thead', {}, element('tr', {}, ...columns.map(
    name => element('th', {scope: 'col', text: name})))), element('tbody', {}, ...rows));
}

// draws a part anew only if what it shows has changed, so that what is selected or scrolled stays
function draw(view, key, data, make, into) {
  const text = JSON.stringify(data);
  if (view.drawn.get(key) === text) return;
  view.drawn.set(key, text);
  into.replaceChildren(make());
}

const none = text => element('p', {class: 'none', text});

function drawRows(view, found) {
  draw(view, 'rows', found, () => {
    if (!found.rows.length) return none('none yet');
    const more = found.more_columns ? [`${found.more_columns} more columns`] : [];
    const rows = found.rows.map((row, place) => element('tr', {}, marks(found.marks[place]), ...row.map(cell),
      ...more.map(() => element('td', {text: '…'}))));
    return table(['what became of it', ...found.columns, ...more], rows);
  }, view.rows.body);
}

function drawRules(view, rules) {
  draw(view, 'rules', rules, () => {
    if (!rules.length) return none('the feed declares no rules');
    const rows = rules.map(rule => element('tr', {},
      element('td', {}, element('span', {class: `badge ${rule.level}`, text: rule.level})),
      element('td', {text: rule.name}), element('td', {text: rule.type}),
      rule.problem ? element('td', {class: 'problem', text: rule.problem})
        : element('td', {text: `${count(rule.broken)} of ${count(rule.rows)} rows`})));
    return table(['', 'rule', 'type', 'breaks it'], rows);
  }, view.rules.body);
}

function drawBroken(view, found) {
  view.broken.part.hidden = !(found.problem || (found.rows && found.rows.length));
  draw(view, 'broken', found, () => {
    if (found.problem) return element('p', {class: 'problem', text: found.problem});
    const rows = (found.rows || []).map(row => element('tr', {},
      element('td', {}, element('span', {class: 'mark broken', text: row[0]})), ...row.slice(1).map(cell)));
    return table(found.columns || [], rows);
  }, view.broken.body);
}

function drawQuarantine(view, found) {
  draw(view, 'quarantine', found, () => {
    if (!found.rows) return none('nothing');
    const reasons = found.reasons.map(([reason, rows]) => element('tr', {}, cell(rows), element('td', {text: reason})));
    const last = found.last.map(row => element('tr', {}, element('td', {text: time(row.at)}),
      element('td', {}, element('span', {class: 'mark broken', text: 'quarantined'}), row.reason),
      element('td', {text: row.position}), cell(row.raw)));
    return element('div', {}, table(['rows', 'reason'], reasons), table(['seen', 'why', 'position', 'as it came'], last));
  }, view.quarantine.body);
}

function answer(tile, found) {
  if (!found || found.waiting) return none('asking …');
  if (found.problem) return element('p', {class: 'problem', text: found.problem});
  if (!found.rows || !found.rows.length) return none('no rows');
  if (tile.kind === 'number') {
    const value = found.rows[0][0];
    const text = value === null ? 'null' : typeof value === 'number' ? exact(value) : String(value);
    return element('p', {class: 'number', text: tile.unit ? `${text} ${tile.unit}` : text});
  }
  if (tile.kind === 'series') return drawSeries(tile, found);
  const more = found.truncated ? [element('tr', {}, element('td', {text: '…'}))] : [];
  return table(found.columns, [...found.rows.map(row => element('tr', {}, ...row.map(cell))), ...more]);
}

function drawSeries(tile, found) {
  const values = found.rows.map(row => row[row.length - 1]).map(value => value === null ? null : Number(value));
  if (values.some(value => value !== null && !Number.isFinite(value))) return element('p', {class: 'problem',
    text: 'the last column of a series has to be a number'});
  const chart = makeChart(tile.name);
  chart.svg.append(...(values.length > 1 && values.some(value => value < 0) ? [path(values, 240, 60)]
    : bars([{values, kind: 'bar'}], 240, 60)));
  const [first, last] = [found.rows[0][0], found.rows[found.rows.length - 1][0]];
  const unit = tile.unit ? ` ${tile.unit}` : '';
  const known = values.filter(value => value !== null), newest = values[values.length - 1];
  const told = `${first} to ${last}: last ${newest === null ? 'null' : exact(newest) + unit}, `
    + `up to ${known.length ? exact(Math.max(...known)) + unit : '–'}`;
  chart.svg.setAttribute('aria-label', `${tile.name}, ${told}`);
  say(chart.caption, told);
  return chart.figure;
}

// of when the window's answers are, where that is not now: a question may take long, and nobody asks while nobody looks
function asOf(asked, now) {
  return asked && Date.parse(now) - Date.parse(asked) > OLD_MS ? `as of ${asked.slice(11, 19)}` : '';
}

function drawTiles(view, tiles, old) {
  for (const tile of tiles) {
    let parts = view.tiles.get(tile.name);
    if (!parts) {
      const scrolled = what => element('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `${tile.name}, ${what}`});
      parts = {now: scrolled('now'), then: scrolled('in the lake'), age: element('h4'), span: element('h4')};
      const sides = [element('div', {class: 'part'}, parts.age, parts.now)];
      if (tile.history) sides.push(element('div', {class: 'part'}, parts.span, parts.then));
      view.tileGrid.append(element('div', {class: 'tile'}, element('h3', {text: tile.name}),
        element('div', {class: tile.history ? 'pair' : ''}, ...sides)));
      view.tiles.set(tile.name, parts);
    }
    say(parts.age, old ? `in the window, ${old}` : 'now, in the window');
    const shown = found => found && {...found, at: null};
    draw(view, `now ${tile.name}`, [tile.kind, shown(tile.live)], () => answer(tile, tile.live), parts.now);
    if (!tile.history) continue;
    say(parts.span, `in the lake, last ${tile.history.span}${tile.history.at ? `, as of ${tile.history.at.slice(11, 19)}` : ''}`);
    draw(view, `then ${tile.name}`, [tile.kind, shown(tile.history)], () => answer(tile, tile.history), parts.then);
  }
}

function show(feed, now) {
  if (!feeds.has(feed.name)) feeds.set(feed.name, makeFeed(feed.name));
  const view = feeds.get(feed.name);
  if (view.badge.textContent !== feed.status) {
    say(view.badge, feed.status);
    view.badge.className = `badge ${feed.status}`;
  }
  view.section.dataset.status = feed.status;
  say(view.link, `${feed.name}: ${feed.status}`);
  say(view.said, feed.status_text);
  say(view.description, feed.description);
  FIGURES.forEach(([, text], place) => say(view.figures[place], text(feed)));
  drawCharts(view, feed.series);
  const old = asOf(feed.asked_at, now);
  drawTiles(view, feed.tiles, old);
  for (const part of [view.rules, view.broken]) say(part.heading, old ? `${part.title}, ${old}` : part.title);
  drawRows(view, feed.rows);
  drawRules(view, feed.rules);
  drawBroken(view, feed.broken);
  drawQuarantine(view, feed.quarantine);
}

let heardAt = 0;
let newest = {feeds: []};  // what was told last; while nobody sees the page, it is not drawn

const showAll = () => newest.feeds.forEach(feed => show(feed, newest.at));

function connected(is) {
  const node = document.getElementById('connection');
  say(node, is ? 'connected' : 'the connection is lost; trying again …');
  node.classList.toggle('lost', !is);
  document.body.classList.toggle('lost', !is);
}

function listen() {
  const source = new EventSource(names ? `events?feeds=${encodeURIComponent(names)}` : 'events');
  source.onmessage = event => {
    heardAt = Date.now();
    connected(true);
    const found = JSON.parse(event.data);
    say(document.getElementById('clock'), found.at.slice(0, 19).replace('T', ' '));
    newest = found;
    if (!document.hidden) showAll();
    const there = new Set(found.feeds.map(feed => feed.name));
    for (const [name, view] of feeds) {
      if (there.has(name)) continue;
      view.section.remove();
      view.item.remove();
      feeds.delete(name);
    }
  };
  source.onerror = () => {
    connected(false);
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 1000);  // it gives up after some answers
  };
}

document.addEventListener('visibilitychange', () => { if (!document.hidden) showAll(); });
setInterval(() => { if (heardAt && Date.now() - heardAt > SILENT_MS) connected(false); }, 500);
listen();
