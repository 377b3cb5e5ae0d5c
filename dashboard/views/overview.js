// Everything at a glance: the world, the apps, what was changed.

import { h, keyed, setText } from '../dom.js';
import { bytes, cores, count, percent, plural } from '../format.js';
import { worldMap } from '../map.js';
import { emptyLine, links, pageHead, panel } from '../parts.js';
import { appTable } from './apps.js';
import { eventList } from './events.js';

const SHOWN_EVENTS = 30;

function tile(name) {
  const value = h('strong');
  const more = h('span', { class: 'quiet' });
  const element = h('div', { class: 'tile' }, h('span', { class: 'tile-name' }, name), value, more);
  return {
    element,
    update(text, detail) {
      setText(value, text);
      setText(more, detail);
    },
  };
}

function tiles() {
  const all = ['Apps', 'Instances ready', 'Locations', 'CPU promised', 'Memory promised'].map(tile);
  const element = h(
    'div',
    { class: 'tiles panel' },
    all.map((one) => one.element),
  );
  const [apps, instances, locations, cpu, memory] = all;

  function ofApps(list) {
    const open = list.filter((app) => app.state !== 'running' && app.state !== 'stopped').length;
    apps.update(count(list.length), open === 0 ? 'all settled' : `${count(open)} not settled`);
    const sum = (part) => list.reduce((total, app) => total + part(app), 0);
    instances.update(count(sum((app) => app.ready)), `of ${count(sum((app) => app.count))} that should run`);
  }

  function ofLocations(list) {
    const silent = list.filter((location) => !location.reachable).length;
    locations.update(count(list.length), silent === 0 ? 'all reachable' : `${count(silent)} silent`);
    const total = (whole, part) => list.reduce((sum, one) => sum + one[whole][part], 0);
    const [used, has] = [total('promised', 'cpu'), total('capacity', 'cpu')];
    cpu.update(percent(used, has), `of ${cores(has)}`);
    const [taken, room] = [total('promised', 'memory'), total('capacity', 'memory')];
    memory.update(percent(taken, room), `of ${bytes(room)}`);
  }

  return {
    element,
    update(live) {
      if (live.apps) ofApps(live.apps);
      if (live.locations) ofLocations(live.locations);
    },
  };
}

// What some location has no room for.
function shortfallPanel() {
  const list = h('ul', { class: 'lines' });
  const { element } = panel('Not placed', list);
  element.classList.add('alert');
  element.hidden = true;
  const line = () => {
    const item = h('li');
    item.update = (one) =>
      setText(
        item,
        `${one.project}/${one.app} in ${one.location}: ${plural(one.missing, 'instance')} missing, ${one.decision.why}`,
      );
    return item;
  };
  return {
    element,
    update(locations) {
      const found = locations.flatMap(({ location, shortfalls = [] }) =>
        shortfalls.map((shortfall) => ({ ...shortfall, location })),
      );
      element.hidden = found.length === 0;
      keyed(list, found.slice(0, 20), (one) => `${one.location} ${one.project} ${one.app}`, line);
    },
  };
}

export function overview() {
  const numbers = tiles();
  const map = worldMap();
  const places = panel('Locations', map.element);
  places.aside.append(h('a', { href: links.locations() }, 'All locations'));
  const shortfalls = shortfallPanel();
  const apps = appTable();
  const appPanel = panel('Apps', apps.element);
  appPanel.aside.append(apps.filter);
  const events = eventList({ label: 'What was changed, the newest first', announce: true });
  const none = emptyLine();
  const happened = panel('Events', events.element, none);
  happened.element.classList.add('happened');
  happened.aside.append(h('a', { href: links.events() }, 'All events'));
  const element = h(
    'div',
    { class: 'page overview' },
    pageHead('Overview'),
    numbers.element,
    shortfalls.element,
    h('div', { class: 'columns' }, places.element, happened.element),
    appPanel.element,
  );
  return {
    title: 'Overview',
    needs: ['apps', 'events', 'locations'],
    element,
    filter: apps.filter,
    update(live) {
      numbers.update(live);
      if (live.locations) {
        map.update(live.locations);
        shortfalls.update(live.locations);
      }
      apps.update(live.apps);
      events.update((live.events ?? []).slice(-SHOWN_EVENTS).reverse(), live);
      none.update(live.events?.length === 0 ? 'Nothing was changed yet.' : null);
    },
  };
}
