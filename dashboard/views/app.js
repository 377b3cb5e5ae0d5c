// One app: its rollout, where it runs, its instances, its releases.

import { get, part } from '../api.js';
import { h, keyed, replace, setAttribute, setText } from '../dom.js';
import { count, dateTime, plural, release } from '../format.js';
import { appOf, live } from '../live.js';
import { worldMap } from '../map.js';
import { bar, cell, chip, emptyLine, facts, links, notice, pageHead, panel, row, table } from '../parts.js';
import { instanceList } from './instances.js';

const EVERY = 5000;
const SHOWN_PLACES = 12;

function canaryText({ ready, count: all, beside, wait }) {
  const next =
    wait === null
      ? 'It waits for longshore promote.'
      : 'It takes over by itself once they were healthy for long enough.';
  return `Canary: ${ready} of ${all} healthy beside ${release(beside)}. ${next}`;
}

function rolloutPanel() {
  const words = h('p', { class: 'rollout-words' });
  const level = bar('ready', 'old');
  level.classList.add('tall');
  const keys = ['ready', 'old', 'rest'].map((name) => h('span', { class: `key ${name}` }));
  const canary = h('p', { class: 'canary', hidden: true });
  const { element } = panel('Rollout', words, level, h('p', { class: 'legend' }, keys), canary);
  return {
    element,
    update(app) {
      setText(
        words,
        `${count(app.ready)} of ${plural(app.count, 'instance')} of ${release(app.release)} ready`,
      );
      level.update(Math.max(app.count, app.ready + app.outdated), app.ready, app.outdated);
      setText(keys[0], `${count(app.ready)} ready`);
      setText(keys[1], `${count(app.outdated)} of other releases`);
      setText(keys[2], `${count(Math.max(0, app.count - app.ready - app.outdated))} not ready`);
      canary.hidden = !app.canary;
      setText(canary, app.canary ? canaryText(app.canary) : '');
    },
  };
}

function placeRow(first) {
  const numbers = [h('span'), h('span'), h('span')];
  const line = row(
    h('a', { href: links.location(first.location) }, first.location),
    ['Wanted', 'Ready', 'There'].map((name, idx) => cell(name, numbers[idx])),
  );
  line.update = ({ wanted, ready, instances }) =>
    [wanted, ready, instances].forEach((number, idx) => setText(numbers[idx], count(number)));
  return line;
}

function placesPanel(name, signal) {
  const list = table('Where it runs', ['Location', 'Wanted', 'Ready', 'There']);
  const none = emptyLine();
  let here = new Map();
  const map = worldMap({
    counted: (location) => here.get(location.location) ?? { instances: 0, ready: 0 },
    named: (location) => here.has(location.location),
  });
  const side = h('div', { class: 'places' }, list.element, none);
  const { element } = panel('Where it runs', h('div', { class: 'map-and-list' }, map.element, side));
  const draw = () => live.locations && map.update(live.locations);
  return {
    element,
    draw,
    async refresh() {
      const path = `/projects/${part(live.project)}/apps/${part(name)}/locations`;
      const places = await get(path, { signal });
      here = new Map(places.map((place) => [place.location, place]));
      places.sort((a, b) => b.instances - a.instances || (a.location < b.location ? -1 : 1));
      keyed(list.body, places.slice(0, SHOWN_PLACES), (place) => place.location, placeRow);
      list.element.hidden = places.length === 0;
      const others = places.length - SHOWN_PLACES;
      none.update(
        others > 0 ? `And ${plural(others, 'more location')}.` : places.length === 0 ? 'Nowhere yet.' : null,
      );
      draw();
    },
  };
}

function releaseRow(first) {
  const mark = h('span', { class: 'quiet' });
  const line = row(
    [release(first.number), ' ', mark],
    cell('Made', dateTime(first.created_at)),
    cell('Image', h('code', {}, first.manifest.image)),
    cell('Digest', h('code', { title: first.image_digest }, `${first.image_digest.slice(0, 19)}…`)),
  );
  line.update = (now) => setText(mark, now.current ? 'current' : '');
  return line;
}

function releasesPanel(name, signal) {
  const list = table('Releases', ['Release', 'Made', 'Image', 'Digest']);
  const { element } = panel('Releases', list.element);
  return {
    element,
    async refresh() {
      const all = await get(`/projects/${part(live.project)}/apps/${part(name)}/releases`, { signal });
      keyed(list.body, all.toReversed(), (one) => one.number, releaseRow);
    },
  };
}

// Addresses are shown as links only when they are some of the web.
function address(url) {
  const isWeb = url.startsWith('http://') || url.startsWith('https://');
  return isWeb ? h('a', { href: url, rel: 'noopener noreferrer', target: '_blank' }, url) : url;
}

// How near it is to its users, and how near it should be.
function nearness(latency) {
  if (!latency) return null;
  const { within, users, reached } = latency;
  const known = typeof reached === 'number' ? `${reached} %` : 'nobody knows yet how many';
  return `${known} within ${within}, and ${users} should be`;
}

export function appView({ app: name }) {
  const abort = new AbortController();
  const state = chip();
  const note = notice('warn');
  const gone = notice('bad');
  const about = facts();
  const rollout = rolloutPanel();
  const places = placesPanel(name, abort.signal);
  const releases = releasesPanel(name, abort.signal);
  const instances = instanceList(`app=${part(name)}`);
  const announcer = document.getElementById('announce');
  let last = null;

  async function refresh() {
    instances.refresh();
    for (const one of [places, releases]) {
      try {
        await one.refresh();
      } catch (problem) {
        if (!abort.signal.aborted && problem.status !== 404) gone.update(problem.message);
      }
    }
  }

  function show(app) {
    state.update(app.state);
    note.update(app.note);
    setAttribute(note, 'class', app.failed ? 'notice bad' : 'notice warn');
    rollout.update(app);
    about.update([
      ['Release', release(app.release)],
      ['Image', h('code', {}, app.image)],
      [
        'Reached at',
        app.urls.length > 0
          ? h(
              'span',
              {},
              app.urls.map((url) => [address(url), ' ']),
            )
          : 'nowhere: it has no port',
      ],
      ['Near its users', nearness(app.latency)],
      ['Priority', app.priority],
      ['Given up last', app.failed ? release(app.failed) : null],
    ]);
    if (last && last.state !== app.state) setText(announcer, `${name} is ${app.state}`);
    if (!last || JSON.stringify(last) !== JSON.stringify(app)) refresh();
    last = app;
  }

  const body = h(
    'div',
    { class: 'page-body', hidden: true },
    note,
    h('section', { class: 'panel', 'aria-label': 'About' }, about),
    rollout.element,
    places.element,
    panel('Instances', instances.element).element,
    releases.element,
  );
  const timer = setInterval(() => document.hidden || refresh(), EVERY);
  const trail = [
    [live.project, links.overview()],
    ['Apps', links.apps()],
  ];
  return {
    title: name,
    needs: ['apps', 'locations'],
    element: h('div', { class: 'page app' }, pageHead(name, trail, state), gone, body),
    up: links.apps(),
    update() {
      places.draw();
      if (!live.apps) return;
      const app = appOf(name);
      gone.update(app ? null : `There is no app ${name} in project ${live.project}.`);
      body.hidden = !app;
      if (app) show(app);
    },
    close() {
      clearInterval(timer);
      abort.abort();
      instances.close();
    },
  };
}
